//! Who may ask: method, `X-Forwarded-For`, endpoint, token.
