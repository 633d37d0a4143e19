//! Where the security token service is to be reached: HTTP and HTTPS at configured addresses.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    peers::Peers,
    query::{Service, Told},
    sigv4::Received,
    tls::{Certificate, TlsError},
    xml,
};
use crate::{accepting::Accepting, registry};

/// Connections at once. Each costs some ten kilobytes.
const CONNECTIONS_MAX: usize = 512;

/// Bytes of a request's body. The longest that AWS takes is some sixty thousand.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// A handshake, a request's head and its body each have this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest that one connection is kept, however busy it is.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(600);

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Addresses for HTTP.
    pub http: Vec<SocketAddr>,
    /// Addresses for HTTPS.
    pub https: Vec<SocketAddr>,
    /// What HTTPS shows.
    pub certificate: Certificate,
    /// Requests of one peer that are answered in a second. Zero sets no limit.
    pub requests_per_second: u32,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// An address cannot be listened at.
    #[error("cannot listen at {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no certificate for HTTPS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What happened, for whoever keeps an audit trail.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// The request's id.
    pub request_id: &'a str,
    /// When it arrived.
    pub at: Timestamp,
    /// Who sent it.
    pub peer: SocketAddr,
    /// What it says it is.
    pub user_agent: Option<&'a str>,
    /// What came of it; nothing where its sender asks too often.
    pub told: Option<&'a Told>,
}

/// Is told of every exchange.
pub type Watch = Box<dyn Fn(&Exchange<'_>) + Send + Sync>;

/// The endpoint, with its sockets open.
pub struct Endpoint {
    listeners: Vec<(TcpListener, Option<TlsAcceptor>)>,
    shared: Arc<Shared>,
}

struct Shared {
    service: Service,
    registry: Arc<registry::Published>,
    watch: Watch,
    connections: Arc<Semaphore>,
    peers: Arc<Peers>,
    began: Instant,
}

impl Endpoint {
    /// Opens the sockets, and makes or reads the certificate if it is needed.
    pub async fn bind(
        settings: &Settings,
        service: Service,
        registry: Arc<registry::Published>,
        watch: Watch,
    ) -> Result<Self, EndpointError> {
        let mut listeners = Vec::new();
        for address in &settings.http {
            listeners.push((bind(address).await?, None));
        }
        if !settings.https.is_empty() {
            let acceptor = TlsAcceptor::from(settings.certificate.load_or_create()?);
            for address in &settings.https {
                listeners.push((bind(address).await?, Some(acceptor.clone())));
            }
        }
        Ok(Self {
            listeners,
            shared: Arc::new(Shared {
                service,
                registry,
                watch,
                connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                peers: Arc::new(Peers::new(settings.requests_per_second)),
                began: Instant::now(),
            }),
        })
    }

    /// Serves until dropped, and then drops its connections too.
    pub async fn run(self) {
        let mut listeners = JoinSet::new();
        for (listener, tls) in self.listeners {
            listeners.spawn(accept(listener, tls, Arc::clone(&self.shared)));
        }
        while listeners.join_next().await.is_some() {}
    }
}

async fn bind(address: &SocketAddr) -> Result<TcpListener, EndpointError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| EndpointError::Bind {
            address: *address,
            source,
        })
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let (mut accepting, mut connections) = (Accepting::of("security token service"), JoinSet::new());
    loop {
        let Ok(permit) = Arc::clone(&shared.connections).acquire_owned().await else {
            return;
        };
        let (stream, peer) = accepting.next(|| listener.accept()).await;
        while connections.try_join_next().is_some() {}
        let Some(seat) = shared.peers.seat(peer.ip()) else {
            log::debug!("security token service: {peer} has too many connections");
            continue;
        };
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let served = serve_stream(stream, tls, peer, &shared);
            // Neither a deaf peer nor one with a broken connection is anybody's business.
            _ = tokio::time::timeout(CONNECTION_TIME_MAX, served).await;
            drop((seat, permit));
        });
    }
}

async fn serve_stream(stream: TcpStream, tls: Option<TlsAcceptor>, peer: SocketAddr, shared: &Shared) {
    _ = stream.set_nodelay(true);
    match tls {
        None => serve(stream, peer, shared).await,
        Some(acceptor) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                serve(stream, peer, shared).await;
            }
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, peer: SocketAddr, shared: &Shared) {
    let service =
        service_fn(|request| async move { Ok::<_, Infallible>(respond(request, peer, shared).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        log::debug!("security token service: {peer}: {error}");
    }
}

async fn respond(request: Request<Incoming>, peer: SocketAddr, shared: &Shared) -> Response<Full<Bytes>> {
    let at = Timestamp::now();
    let request_id = uuid::Uuid::new_v4().to_string();
    let (head, body) = request.into_parts();
    let refuse = |status, code, message| {
        let body = xml::error(true, code, message, &request_id);
        response(status, body.as_bytes(), &request_id)
    };
    let user_agent = head.headers.get(header::USER_AGENT);
    let watch = |told| {
        (shared.watch)(&Exchange {
            request_id: &request_id,
            at,
            peer,
            user_agent: user_agent.and_then(|value| value.to_str().ok()),
            told,
        });
    };
    if !shared.peers.may_ask(peer.ip(), shared.began.elapsed()) {
        watch(None);
        let mut response = refuse(400, "Throttling", "Rate exceeded");
        // To be refused again costs another connection.
        let close = header::HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        return response;
    }
    if head.uri.path() != "/" {
        return refuse(404, "InvalidAction", "There is nothing but / here.");
    }
    let body = tokio::time::timeout(PATIENCE, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let Ok(Ok(body)) = body else {
        return refuse(400, "MalformedInput", "The body is too long, or does not end.");
    };
    let body = body.to_bytes();
    let received = Received {
        method: &head.method,
        query: head.uri.query().unwrap_or_default(),
        headers: &head.headers,
        body: &body,
    };
    let told = shared
        .service
        .respond(&received, &shared.registry.load(), at, &request_id);
    watch(Some(&told));
    response(told.status, told.body.as_bytes(), &request_id)
}

fn response(status: u16, body: &[u8], request_id: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/xml"));
    if let Ok(request_id) = request_id.try_into() {
        headers.insert("x-amzn-requestid", request_id);
    }
    response
}
