//! Where metrics are to be had: HTTP on a Unix socket, and at addresses that the operator names.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{Mutex, Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use super::{
    Metrics,
    sources::{Host, Told},
};
use crate::{
    accepting::Accepting,
    unix_socket::{BindError, UnixSocket},
};

/// Scrapers at once: a pair of Prometheus servers, a person with curl, and some.
const CONNECTIONS_MAX: usize = 16;

/// A request's head has this long, and so has the agent's loop to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest that one connection is kept.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(600);

/// The group may scrape, others may not: names of roles and taps are nobody else's business.
const SOCKET_MODE: u32 = 0o660;

/// OpenMetrics 1.0, which every Prometheus of today reads.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where to listen, and what to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The Unix socket.
    pub socket: Option<PathBuf>,
    /// Addresses for HTTP.
    pub addresses: Vec<SocketAddr>,
}

/// Asks the agent's loop what only it knows.
pub type Asked = oneshot::Sender<Told>;

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// An address cannot be listened at.
    #[error("cannot listen at {address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("the socket of metrics")]
    Socket(#[from] BindError),
}

/// The endpoint, with its sockets open.
#[derive(Debug)]
pub struct Endpoint {
    socket: Option<UnixSocket>,
    listeners: Vec<TcpListener>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    host: Host,
    asks: mpsc::Sender<Asked>,
    /// One scrape at a time, so that none tells what another has already told newer of.
    turn: Mutex<()>,
    connections: Arc<Semaphore>,
}

impl Endpoint {
    /// Opens the sockets. What is told is `metrics` and what the agent's loop says when it is asked through `asks`.
    pub async fn bind(
        settings: &Settings,
        metrics: Metrics,
        asks: mpsc::Sender<Asked>,
    ) -> Result<Self, EndpointError> {
        let socket = match &settings.socket {
            Some(path) => Some(UnixSocket::bind(path, SOCKET_MODE, None).await?),
            None => None,
        };
        let mut listeners = Vec::new();
        for &address in &settings.addresses {
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|source| EndpointError::Address { address, source })?);
        }
        let host = Host::default();
        Ok(Self {
            socket,
            listeners,
            shared: Arc::new(Shared {
                metrics: metrics.with(host.clone()),
                host,
                asks,
                turn: Mutex::new(()),
                connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            }),
        })
    }

    /// Serves until dropped, and then drops its connections too.
    pub async fn run(self) {
        let mut listeners = JoinSet::new();
        if let Some(socket) = self.socket {
            let shared = Arc::clone(&self.shared);
            listeners.spawn(async move {
                // The file is there for as long as it is served.
                let (_file, listener) = socket.into_parts();
                accept(|| async { Ok(listener.accept().await?.0) }, &shared).await;
            });
        }
        for listener in self.listeners {
            let shared = Arc::clone(&self.shared);
            listeners
                .spawn(async move { accept(|| async { Ok(listener.accept().await?.0) }, &shared).await });
        }
        while listeners.join_next().await.is_some() {}
    }
}

async fn accept<S, F>(next: impl Fn() -> F, shared: &Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let (mut accepting, mut connections) = (Accepting::of("metrics"), JoinSet::new());
    loop {
        let Ok(permit) = Arc::clone(&shared.connections).acquire_owned().await else {
            return;
        };
        let stream = accepting.next(&next).await;
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(shared);
        connections.spawn(async move {
            // Neither a deaf scraper nor one with a broken connection is anybody's business.
            _ = tokio::time::timeout(CONNECTION_TIME_MAX, serve(stream, &shared)).await;
            drop(permit);
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, shared: &Shared) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(respond(&request, shared).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        log::debug!("metrics: {error}");
    }
}

async fn respond(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "There is nothing but /metrics here.\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Metrics are only read.\n");
        let allowed = header::HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    match tokio::time::timeout(PATIENCE, scrape(shared)).await {
        Ok(Some(text)) => {
            let mut response = Response::new(Full::new(text.into()));
            let content_type = header::HeaderValue::from_static(CONTENT_TYPE);
            response.headers_mut().insert(header::CONTENT_TYPE, content_type);
            response
        }
        Ok(None) | Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "The agent does not answer.\n"),
    }
}

/// Asks the agent's loop, and then everybody else.
async fn scrape(shared: &Shared) -> Option<String> {
    let _turn = shared.turn.lock().await;
    let (asked, told) = oneshot::channel();
    shared.asks.send(asked).await.ok()?;
    shared.host.handle_told(told.await.ok()?);
    shared.metrics.encode().ok()
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
