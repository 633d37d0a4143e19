//! A request on a kept-alive connection is answered in the room that the first one made.

use std::time::Duration;

use imds_agent::http::Connection;

use super::world::{Server, World, now};

#[test]
fn nothing_is_allocated_for_a_request() {
    let mut server = Server::new();
    server.set_caller(World::named("full"), 1);
    let now = now(Duration::ZERO);
    let token = server.mint(now, 60);
    for path in [
        "meta-data/instance-id",
        "meta-data/network/interfaces/macs/0e:49:61:0f:c3:12/local-ipv4s",
        "meta-data/iam/security-credentials/imds-assume-role-test",
        "meta-data/tags/instance/Name",
        "meta-data/tags/instance/with%2Fslash",
        "meta-data/tags/instance-index",
        "meta-data/events/maintenance/scheduled",
        "meta-data/events/recommendations/rebalance",
        "meta-data/spot/instance-action",
        "meta-data/autoscaling/target-lifecycle-state",
        "meta-data/elastic-gpus/associations/egpu-f6d94dfa66df4883b284e96db7397ee6",
        "meta-data/elastic-inference/associations/eia-bfa21c7904f64a82a21b9f4540169ce1",
        "dynamic/instance-identity/document",
        "dynamic/instance-identity/dsa2048",
        "meta-data/",
        "nothing",
    ] {
        let request = format!(
            "GET /latest/{path} HTTP/1.1\r\nConnection: keep-alive\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
        );
        let mut connection = Connection::new(now);
        let mut exchange = || {
            connection.handle_bytes(now, request.as_bytes(), &mut server);
            while let Some(transmit) = connection.poll_transmit() {
                let count = transmit.bytes.len();
                connection.handle_transmitted(now, count, &mut server);
            }
            server.outcomes.clear();
        };
        exchange();
        let counted = allocation_counter::measure(exchange);
        assert_eq!(counted.count_total, 0, "{path}");
    }
}
