//! User data: the exact bytes, in both directions.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    Control, Refusal,
    asked::{Asked, tagged},
    instances::{change, id},
};
use crate::registry::{record::Record, store::Key};

type Answer = Result<Response, Refusal>;

/// `GET /v1/instances/{id}/user-data`
pub(super) async fn get(State(control): State<Arc<Control>>, Path(text): Path<String>, _: Asked) -> Answer {
    let id = id(&text)?;
    let key = Key::Instance(id.clone());
    let stored = control.store(move |store| store.get(&key)).await?;
    let user_data = match stored.record {
        Some(Record::Instance(instance)) => instance.user_data,
        _ => return Err(Refusal::broken(id)),
    };
    let user_data = user_data.ok_or_else(|| Refusal::not_found(format!("{id} has no user data")))?;
    let response = ([(header::CONTENT_TYPE, "application/octet-stream")], user_data.0).into_response();
    Ok(tagged(response, &stored.revision))
}

/// `PUT /v1/instances/{id}/user-data`
pub(super) async fn put(
    State(control): State<Arc<Control>>,
    Path(text): Path<String>,
    asked: Asked,
    body: Bytes,
) -> Answer {
    change(control, &text, asked, move |record| {
        record.insert("UserData".to_owned(), STANDARD.encode(&body).into());
        Ok(())
    })
    .await
}

/// `DELETE /v1/instances/{id}/user-data`
pub(super) async fn delete(
    State(control): State<Arc<Control>>,
    Path(text): Path<String>,
    asked: Asked,
) -> Answer {
    change(control, &text, asked, |record| {
        record.shift_remove("UserData");
        Ok(())
    })
    .await
}
