//! Keeps every role session supplied: fetch, refresh ahead of expiry, back off, publish.
