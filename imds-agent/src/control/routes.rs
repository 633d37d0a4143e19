//! All that can be asked, as one table: method, path, who may, and what answers.
//!
//! `docs/openapi.json` describes the same to programs; a test holds the two against each other.

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{self, MethodRouter},
};

use super::{
    Control, Refusal,
    access::{Access, gate},
    asked::JSON,
    iam, instances, metadata, observed, options, parts, status, user_data, watched,
};

/// Bytes of a body: a record, however much white space there is in it.
const BODY_BYTES_MAX: usize = 4 << 20;

type Handler = fn() -> MethodRouter<Arc<Control>>;

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The method, in lower case as OpenAPI has it.
    pub method: &'static str,
    /// The path, with names in braces.
    pub path: &'static str,
    /// Who may.
    pub access: Access,
    handler: Handler,
}

/// Rows: method, path, access, handler.
macro_rules! routes {
    ($($method:ident $path:literal $access:ident $handler:path;)+) => {
        /// Every operation.
        pub const ROUTES: &[Route] = &[$(Route {
            method: stringify!($method),
            path: $path,
            access: Access::$access,
            handler: || routing::$method($handler),
        }),+];
    };
}

routes! {
    get "/healthz" Anyone status::healthz;
    get "/readyz" Anyone status::readyz;
    get "/v1/openapi.json" Anyone status::openapi;
    get "/v1/status" Read status::status;
    post "/v1/reload" Admin status::reload;
    get "/v1/trace" Read watched::trace;

    get "/v1/instances" Read instances::list;
    get "/v1/instances/{id}" Read instances::get;
    put "/v1/instances/{id}" Admin instances::put;
    delete "/v1/instances/{id}" Admin instances::delete;
    get "/v1/instances/{id}/metadata-options" Read options::get;
    patch "/v1/instances/{id}/metadata-options" Admin options::patch;
    get "/v1/instances/{id}/user-data" Admin user_data::get;
    put "/v1/instances/{id}/user-data" Admin user_data::put;
    delete "/v1/instances/{id}/user-data" Admin user_data::delete;
    get "/v1/instances/{id}/tags" Read parts::get_tags;
    put "/v1/instances/{id}/tags" Admin parts::put_tags;
    patch "/v1/instances/{id}/tags" Admin parts::patch_tags;
    get "/v1/instances/{id}/events" Read parts::get_events;
    put "/v1/instances/{id}/events" Admin parts::put_events;
    patch "/v1/instances/{id}/events" Admin parts::patch_events;
    get "/v1/instances/{id}/iam-instance-profile" Read parts::get_profile;
    post "/v1/instances/{id}/iam-instance-profile" Admin parts::associate_profile;
    put "/v1/instances/{id}/iam-instance-profile" Admin parts::replace_profile;
    delete "/v1/instances/{id}/iam-instance-profile" Admin parts::disassociate_profile;
    get "/v1/instances/{id}/metadata/{*path}" Read metadata::get;
    get "/v1/instances/{id}/observed" Read observed::get;
    get "/v1/instances/{id}/tokenless" Read watched::tokenless;
    get "/v1/instances/{id}/hop-limit" Read watched::hop_limit;

    get "/v1/roles" Read iam::list_roles;
    get "/v1/roles/{name}" Read iam::get_role;
    put "/v1/roles/{name}" Admin iam::put_role;
    delete "/v1/roles/{name}" Admin iam::delete_role;
    get "/v1/instance-profiles" Read iam::list_profiles;
    get "/v1/instance-profiles/{name}" Read iam::get_profile;
    put "/v1/instance-profiles/{name}" Admin iam::put_profile;
    delete "/v1/instance-profiles/{name}" Admin iam::delete_profile;
    put "/v1/instance-profiles/{name}/roles/{role}" Admin iam::add_role;
    delete "/v1/instance-profiles/{name}/roles/{role}" Admin iam::remove_role;
}

/// All of it, to be served.
pub fn router(control: Arc<Control>) -> Router {
    let routes = ROUTES.iter().fold(Router::new(), |router, route| {
        let access = route.access;
        let gate = middleware::from_fn(move |peer, permits, attempts, request, next| {
            gate(access, peer, permits, attempts, request, next)
        });
        router.route(route.path, (route.handler)().layer(gate))
    });
    routes
        .fallback(async || Refusal::no_route())
        .method_not_allowed_fallback(async || Refusal::no_method())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(in_our_words))
        .with_state(control)
}

/// What axum itself refuses is told as everything else is.
async fn in_our_words(response: Response) -> Response {
    let status = response.status();
    let is_ours = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == JSON);
    if is_ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::too_long(BODY_BYTES_MAX).into_response(),
        _ => Refusal::unreadable().into_response(),
    }
}
