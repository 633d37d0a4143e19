//! Verifies AWS Signature Version 4, in the `Authorization` header or in the query.
//!
//! Read first: IAM user guide, "Create a signed AWS API request". A signature is good for fifteen minutes before and
//! after its date, as at AWS: within that window a request may be repeated, which is what relying parties do with presigned ones.
//! Performs no IO and reads no clock.

use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::{HeaderMap, Method};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// How far a request's date may be from ours.
pub const WINDOW: SignedDuration = SignedDuration::from_mins(15);

/// The longest that a presigned request may ask to be good for. It is good for no longer than [`WINDOW`] all the same.
const EXPIRES_SECONDS_MAX: u64 = 7 * 24 * 3600;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "sts";
const TERMINATOR: &str = "aws4_request";

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A request as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// GET, POST.
    pub method: &'a Method,
    /// The query without its question mark, as sent.
    pub query: &'a str,
    /// The header.
    pub headers: &'a HeaderMap,
    /// The body.
    pub body: &'a [u8],
}

/// What a request says about its signature. Nothing of it is verified yet.
#[derive(Debug)]
pub struct Claim {
    /// Whose secret made it.
    pub access_key_id: String,
    /// The session token that came along.
    pub session_token: Option<String>,
    /// The rest of the scope: day, region, service, terminator.
    scope: String,
    day: String,
    region: String,
    signed_headers: Vec<String>,
    signature: String,
    /// As sent.
    date: String,
    signed_at: Timestamp,
    good_until: Timestamp,
    is_presigned: bool,
}

/// Why a signature is not good, in the words of AWS.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("Request is missing Authentication Token")]
    Missing,
    /// Something that belongs to one is not there, or makes no sense.
    #[error("{0}")]
    Incomplete(String),
    /// It is made of the wrong things.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and \
         signing method. Consult the service documentation for details."
    )]
    Mismatch,
    /// It belongs to another service or day.
    #[error("{0}")]
    Scope(String),
    /// It is too old or too new.
    #[error("{0}")]
    Time(String),
}

impl Claim {
    /// What `received` says.
    pub fn read(received: &Received<'_>) -> Result<Self, SignatureError> {
        match header(received.headers, "authorization")? {
            Some(authorization) => Self::in_header(received.headers, &authorization),
            None => Self::in_query(received.query),
        }
    }

    /// The region that the request is signed for, which is the caller's choice.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Whether `secret` made the signature, over just this request, and about `now`.
    pub fn verify(
        &self,
        received: &Received<'_>,
        secret: &str,
        now: Timestamp,
    ) -> Result<(), SignatureError> {
        let canonical = self.canonical_request(received)?;
        let to_sign = format!(
            "{ALGORITHM}\n{}\n{}\n{}",
            self.date,
            self.scope,
            hex(&Sha256::digest(canonical.as_bytes()))
        );
        let key = self.signing_key(secret);
        let expected = hex(&*hmac(&*key, to_sign.as_bytes()));
        if !bool::from(expected.as_bytes().ct_eq(self.signature.as_bytes())) {
            return Err(SignatureError::Mismatch);
        }
        // Last, so that nobody without the secret learns what the time is about.
        self.check_time(now)
    }

    fn in_header(headers: &HeaderMap, authorization: &str) -> Result<Self, SignatureError> {
        let parameters = authorization
            .strip_prefix(ALGORITHM)
            .filter(|rest| rest.starts_with(' '))
            .ok_or_else(|| {
                incomplete("The Authorization header does not begin with the algorithm AWS4-HMAC-SHA256.")
            })?;
        let parameter = |name: &str| {
            parameters
                .split(',')
                .find_map(|parameter| parameter.trim().strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim().to_owned())
                .ok_or_else(|| incomplete(&format!("Authorization header requires '{name}' parameter.")))
        };
        let (credential, signed_headers) = (parameter("Credential")?, parameter("SignedHeaders")?);
        let signature = parameter("Signature")?;
        let date = header(headers, "x-amz-date")?
            .ok_or_else(|| incomplete("Authorization header requires existence of a 'X-Amz-Date' header."))?;
        let session_token = header(headers, "x-amz-security-token")?;
        Self::of(&credential, &signed_headers, signature, date, session_token, None)
    }

    fn in_query(query: &str) -> Result<Self, SignatureError> {
        let parameters = Parameters::parse(query)?;
        let Some(algorithm) = parameters.get("X-Amz-Algorithm")? else {
            return Err(SignatureError::Missing);
        };
        if algorithm != ALGORITHM {
            return Err(incomplete("X-Amz-Algorithm is not AWS4-HMAC-SHA256."));
        }
        let parameter = |name: &str| {
            parameters
                .get(name)?
                .ok_or_else(|| incomplete(&format!("AWS query-string parameters must include '{name}'.")))
        };
        let expires_seconds = match parameters.get("X-Amz-Expires")? {
            None => WINDOW.as_secs(),
            Some(text) => text
                .parse::<u64>()
                .ok()
                .filter(|seconds| (1..=EXPIRES_SECONDS_MAX).contains(seconds))
                .and_then(|seconds| i64::try_from(seconds).ok())
                .ok_or_else(|| incomplete("X-Amz-Expires must be 1 to 604800 seconds."))?,
        };
        Self::of(
            &parameter("X-Amz-Credential")?,
            &parameter("X-Amz-SignedHeaders")?,
            parameter("X-Amz-Signature")?,
            parameter("X-Amz-Date")?,
            parameters.get("X-Amz-Security-Token")?,
            Some(SignedDuration::from_secs(expires_seconds)),
        )
    }

    fn of(
        credential: &str,
        signed_headers: &str,
        signature: String,
        date: String,
        session_token: Option<String>,
        expires: Option<SignedDuration>,
    ) -> Result<Self, SignatureError> {
        let mut parts = credential.split('/');
        let (Some(access_key_id), Some(day), Some(region), Some(service), Some(terminator), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(incomplete(
                "The credential must have the form access key id/date/region/service/aws4_request.",
            ));
        };
        let signed_at = DateTime::strptime("%Y%m%dT%H%M%SZ", &date)
            .and_then(|time| time.to_zoned(TimeZone::UTC))
            .map_err(|_| incomplete("The date is not in ISO 8601 basic format."))?
            .timestamp();
        if service != SERVICE || terminator != TERMINATOR {
            return Err(SignatureError::Scope(
                "Credential should be scoped to correct service: 'sts'.".to_owned(),
            ));
        }
        if !date.starts_with(day) || day.len() != "20261121".len() {
            return Err(SignatureError::Scope(
                "Date in Credential scope does not match the date of the request.".to_owned(),
            ));
        }
        let signed_headers: Vec<_> = signed_headers.split(';').map(str::to_owned).collect();
        if !signed_headers.iter().any(|name| name == "host") {
            return Err(incomplete(
                "'Host' must be a 'SignedHeader' in the AWS Authorization.",
            ));
        }
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            session_token,
            scope: format!("{day}/{region}/{service}/{terminator}"),
            day: day.to_owned(),
            region: region.to_owned(),
            signed_headers,
            signature,
            date,
            signed_at,
            good_until: signed_at
                .checked_add(expires.map_or(WINDOW, |expires| expires.min(WINDOW)))
                .unwrap_or(Timestamp::MAX),
            is_presigned: expires.is_some(),
        })
    }

    fn canonical_request(&self, received: &Received<'_>) -> Result<String, SignatureError> {
        let query = Parameters::parse(received.query)?.canonical(self.is_presigned);
        let mut canonical = format!("{}\n/\n{query}\n", received.method);
        for name in &self.signed_headers {
            canonical.push_str(name);
            canonical.push(':');
            for (place, value) in received.headers.get_all(name.as_str()).iter().enumerate() {
                if place > 0 {
                    canonical.push(',');
                }
                let value = value
                    .to_str()
                    .map_err(|_| incomplete("A signed header is not of printable characters."))?;
                let mut words = value.split(' ').filter(|word| !word.is_empty());
                canonical.extend(words.next());
                for word in words {
                    canonical.push(' ');
                    canonical.push_str(word);
                }
            }
            canonical.push('\n');
        }
        canonical.push('\n');
        canonical.push_str(&self.signed_headers.join(";"));
        canonical.push('\n');
        canonical.push_str(&hex(&Sha256::digest(received.body)));
        Ok(canonical)
    }

    fn signing_key(&self, secret: &str) -> Zeroizing<[u8; 32]> {
        let secret = Zeroizing::new(["AWS4", secret].concat());
        let day = hmac(secret.as_bytes(), self.day.as_bytes());
        let region = hmac(&*day, self.region.as_bytes());
        let service = hmac(&*region, SERVICE.as_bytes());
        hmac(&*service, TERMINATOR.as_bytes())
    }

    fn check_time(&self, now: Timestamp) -> Result<(), SignatureError> {
        let basic = |time: Timestamp| time.strftime("%Y%m%dT%H%M%SZ").to_string();
        if self.good_until < now {
            return Err(SignatureError::Time(format!(
                "Signature expired: {} is good until {}, and it is {}.",
                self.date,
                basic(self.good_until),
                basic(now)
            )));
        }
        if now
            .checked_add(WINDOW)
            .is_ok_and(|latest| self.signed_at > latest)
        {
            return Err(SignatureError::Time(format!(
                "Signature not yet current: {} is still later than {} by more than 15 min.",
                self.date,
                basic(now)
            )));
        }
        Ok(())
    }
}

/// Parameters of a query, decoded, in the order in which they came.
#[derive(Debug)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Splits and decodes. A plus sign is a plus sign, as signers see it.
    pub fn parse(query: &str) -> Result<Self, SignatureError> {
        let decode = |text: &str| {
            percent_decode_str(text)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| incomplete("The query is not UTF-8."))
        };
        query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(name)?, decode(value)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Those that are no part of a signature.
    pub fn into_own(self) -> impl Iterator<Item = (String, String)> {
        self.0.into_iter().filter(|(name, _)| !name.starts_with("X-Amz-"))
    }

    fn get(&self, name: &str) -> Result<Option<String>, SignatureError> {
        let mut values = self.0.iter().filter(|(other, _)| other == name);
        match (values.next(), values.next()) {
            (found, None) => Ok(found.map(|(_, value)| value.clone())),
            (_, Some(_)) => Err(incomplete(&format!("{name} is there twice."))),
        }
    }

    fn canonical(&self, is_presigned: bool) -> String {
        let encode = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
        let mut pairs: Vec<_> = self
            .0
            .iter()
            .filter(|(name, _)| !(is_presigned && name == "X-Amz-Signature"))
            .map(|(name, value)| (encode(name), encode(value)))
            .collect();
        pairs.sort();
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        pairs.join("&")
    }
}

/// The one value of a header, if there is one.
fn header(headers: &HeaderMap, name: &str) -> Result<Option<String>, SignatureError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(value) => Ok(Some(value.to_owned())),
            Err(_) => Err(incomplete(&format!("{name} is not of printable characters."))),
        },
        (Some(_), Some(_)) => Err(incomplete(&format!("{name} is there twice."))),
    }
}

fn incomplete(message: &str) -> SignatureError {
    SignatureError::Incomplete(message.to_owned())
}

fn hmac(key: &[u8], message: &[u8]) -> Zeroizing<[u8; 32]> {
    #[expect(clippy::expect_used, reason = "what the crate says of HMAC")]
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    Zeroizing::new(mac.chain_update(message).finalize().into_bytes().into())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests;
