//! The server under test: how it is asked, and what is known about the instance before the first check.

use std::{
    cell::{Cell, OnceCell, RefCell},
    thread,
    time::Duration,
};

use super::{
    client::{Client, Conversation, ExchangeError, Expects, Reply, Result},
    crawl::Crawl,
};

/// The request header that asks for a token.
pub(super) const TTL_HEADER: &str = "X-aws-ec2-metadata-token-ttl-seconds";

/// The request header that carries a token.
pub(super) const TOKEN_HEADER: &str = "X-aws-ec2-metadata-token";

/// The header that a forwarding proxy adds.
pub(super) const FORWARDED_HEADER: &str = "X-Forwarded-For";

/// Where tokens come from.
pub(super) const TOKEN_PATH: &str = "/latest/api/token";

/// The leaf that every server has.
pub(super) const LEAF: &str = "/latest/meta-data/instance-id";

/// What the SDKs ask for.
pub(super) const TTL_SECONDS: u32 = 21600;

/// The longest wait that a `Retry-After` gets.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);

/// How long a run waits in all for a server that says 503; then a 503 is its answer.
const PATIENCE: Duration = Duration::from_secs(6);

/// What answers a request without a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version1 {
    /// `HttpTokens=optional`
    Answered,
    /// `HttpTokens=required`
    Refused,
    /// `HttpEndpoint=disabled`
    Disabled,
}

/// What the checks depend on and the instance decides.
#[derive(Debug)]
pub(super) struct Facts {
    pub has_tokens: bool,
    pub version1: Version1,
    /// Whether a connection stays open when the request asks for it.
    pub keeps_alive: bool,
    /// The versions that `/` lists, or `latest` where it lists none.
    pub versions: Vec<String>,
    pub role: Option<String>,
    pub has_user_data: bool,
    pub has_public_keys: bool,
    pub mac: Option<String>,
}

/// The server under test.
pub(super) struct Subject<'a> {
    pub client: &'a Client,
    pub facts: Facts,
    token: Option<String>,
    kept: RefCell<Option<Conversation<'a>>>,
    patience: Patience,
    crawl: OnceCell<Crawl>,
}

impl<'a> Subject<'a> {
    /// Finds out what the checks depend on. Fails if nobody answers at all.
    pub(super) fn discover(client: &'a Client) -> Result<Self> {
        let patience = Patience(Cell::new(PATIENCE));
        let minted = patience.with(|| mint(client, TTL_SECONDS));
        if let Err(ExchangeError::Connect(error)) = minted {
            return Err(ExchangeError::Connect(error));
        }
        let token_status = minted.as_ref().ok().map(|reply| reply.status);
        let token = minted.ok().and_then(|reply| token_of(&reply));
        let untokened = client.exchange(client.request("GET", LEAF, &[]), Expects::Body);
        let version1 = match (untokened.map(|reply| reply.status), token_status) {
            (Ok(403), Some(403)) => Version1::Disabled,
            (Ok(401 | 403), _) => Version1::Refused,
            _ => Version1::Answered,
        };
        let mut subject = Self {
            client,
            facts: Facts {
                has_tokens: token.is_some(),
                version1,
                keeps_alive: false,
                versions: Vec::new(),
                role: None,
                has_user_data: false,
                has_public_keys: false,
                mac: None,
            },
            token,
            kept: RefCell::new(None),
            patience,
            crawl: OnceCell::new(),
        };
        subject.facts.keeps_alive = subject.keeps_alive();
        subject.facts.versions = subject.versions();
        subject.facts.role = subject.first_line("/latest/meta-data/iam/security-credentials/");
        subject.facts.mac = subject.first_line("/latest/meta-data/mac");
        subject.facts.has_user_data = subject.found("/latest/user-data").is_some();
        subject.facts.has_public_keys = subject.found("/latest/meta-data/public-keys/").is_some();
        Ok(subject)
    }

    /// The token of this run, where the server has any.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whether a request without a token is answered.
    pub(super) fn is_version1_answered(&self) -> bool {
        self.facts.version1 == Version1::Answered
    }

    /// GET with the token.
    pub(super) fn get(&self, target: &str) -> Result<Reply> {
        self.ask("GET", target, &[])
    }

    /// Any request with the token and further header fields.
    pub(super) fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        self.ask_bare(method, target, &self.with_token(headers))
    }

    /// Any request without the token.
    pub(super) fn ask_bare(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        let expects = if method == "HEAD" {
            Expects::HeadOnly
        } else {
            Expects::Body
        };
        let request = self.client.request(method, target, headers);
        self.patience.with(|| self.client.exchange(&request, expects))
    }

    /// Asks for a token with these values of the TTL header.
    pub(super) fn put_token(&self, ttls: &[&str], headers: &[(&str, &str)]) -> Result<Reply> {
        let mut all: Vec<(&str, &str)> = ttls.iter().map(|ttl| (TTL_HEADER, *ttl)).collect();
        all.extend(headers);
        self.ask_bare("PUT", TOKEN_PATH, &all)
    }

    /// The bytes of a request with the token.
    pub(super) fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
        self.client.request(method, target, &self.with_token(headers))
    }

    /// GET with the token, over the kept connection if the server keeps any: for crawls.
    pub(super) fn get_kept(&self, target: &str) -> Result<Reply> {
        if !self.facts.keeps_alive {
            return self.get(target);
        }
        let request = self.request("GET", target, &[("Connection", "keep-alive")]);
        self.patience.with(|| {
            let held = self.kept.borrow_mut().take();
            if let Some(mut conversation) = held {
                conversation.send(&request);
                // A kept connection may be closed at any time (RFC 9112, section 9.3.1): then a fresh one tells.
                if let Ok(reply) = conversation.reply(Expects::Body) {
                    self.keep(conversation, &reply);
                    return Ok(reply);
                }
            }
            let mut conversation = self.client.open()?;
            conversation.send(&request);
            let reply = conversation.reply(Expects::Body)?;
            self.keep(conversation, &reply);
            Ok(reply)
        })
    }

    /// The whole tree of every version, walked once.
    pub(super) fn crawl(&self) -> &Crawl {
        self.crawl.get_or_init(|| Crawl::walk(self))
    }

    fn keep(&self, conversation: Conversation<'a>, reply: &Reply) {
        let is_last = reply
            .header("Connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if !is_last {
            self.kept.replace(Some(conversation));
        }
    }

    fn with_token<'h>(&'h self, headers: &[(&'h str, &'h str)]) -> Vec<(&'h str, &'h str)> {
        let token = self.token().map(|token| (TOKEN_HEADER, token));
        token.into_iter().chain(headers.iter().copied()).collect()
    }

    fn keeps_alive(&self) -> bool {
        let request = self.request("GET", LEAF, &[("Connection", "keep-alive")]);
        let twice = || {
            let mut conversation = self.client.open()?;
            conversation.send(&request);
            conversation.reply(Expects::Body)?;
            conversation.send(&request);
            conversation.reply(Expects::Body)
        };
        twice().is_ok()
    }

    fn versions(&self) -> Vec<String> {
        let listed = self.found("/").map(|reply| reply.lines()).unwrap_or_default();
        let versions: Vec<String> = listed.into_iter().filter(|line| is_version(line)).collect();
        if versions.is_empty() {
            vec!["latest".to_owned()]
        } else {
            versions
        }
    }

    fn found(&self, target: &str) -> Option<Reply> {
        self.get(target).ok().filter(|reply| reply.status == 200)
    }

    fn first_line(&self, target: &str) -> Option<String> {
        let lines = self.found(target)?.lines();
        lines.into_iter().next().filter(|line| !line.is_empty())
    }
}

/// Whether `text` names a version: `1.0`, a date, or `latest`.
pub(super) fn is_version(text: &str) -> bool {
    let is_date = text.len() == 10
        && text.bytes().enumerate().all(|(index, byte)| match index {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    is_date || matches!(text, "1.0" | "latest")
}

/// The token in a reply, if there is one.
pub(super) fn token_of(reply: &Reply) -> Option<String> {
    let text = std::str::from_utf8(&reply.body).ok()?;
    let is_token =
        reply.status == 200 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_token.then(|| text.to_owned())
}

fn mint(client: &Client, ttl_seconds: u32) -> Result<Reply> {
    let ttl = ttl_seconds.to_string();
    let request = client.request("PUT", TOKEN_PATH, &[(TTL_HEADER, &ttl)]);
    client.exchange(&request, Expects::Body)
}

/// What is left of the time that a busy server is given.
struct Patience(Cell<Duration>);

impl Patience {
    /// Repeats what a busy server puts off, as the SDKs do.
    fn with(&self, mut exchange: impl FnMut() -> Result<Reply>) -> Result<Reply> {
        loop {
            let reply = exchange()?;
            if reply.status != 503 || self.0.get().is_zero() {
                return Ok(reply);
            }
            let seconds = reply
                .header("Retry-After")
                .and_then(|seconds| seconds.parse().ok());
            let wait = RETRY_AFTER_MAX.min(Duration::from_secs(seconds.unwrap_or(1)));
            self.0
                .set(self.0.get().saturating_sub(wait.max(Duration::from_millis(100))));
            thread::sleep(wait);
        }
    }
}
