//! User data: the exact bytes, in both directions.

use axum::{
    body::Bytes,
    http::header,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Refusal, asked::tagged, instances::OnInstance};
use crate::registry::record::Record;

type Answer = Result<Response, Refusal>;

/// `GET /v1/instances/{id}/user-data`
pub(super) async fn get(on: OnInstance) -> Answer {
    let (key, stored) = on.read().await?;
    let user_data = match stored.record {
        Some(Record::Instance(instance)) => instance.user_data,
        _ => return Err(Refusal::broken(key)),
    };
    let user_data = user_data.ok_or_else(|| Refusal::not_found(format!("{key} has no user data")))?;
    let response = ([(header::CONTENT_TYPE, "application/octet-stream")], user_data.0).into_response();
    Ok(tagged(response, &stored.revision))
}

/// `PUT /v1/instances/{id}/user-data`
pub(super) async fn put(on: OnInstance, body: Bytes) -> Answer {
    on.change(move |record| {
        record.insert("UserData".to_owned(), STANDARD.encode(&body).into());
        Ok(())
    })
    .await
}

/// `DELETE /v1/instances/{id}/user-data`
pub(super) async fn delete(on: OnInstance) -> Answer {
    on.change(|record| {
        record.shift_remove("UserData");
        Ok(())
    })
    .await
}
