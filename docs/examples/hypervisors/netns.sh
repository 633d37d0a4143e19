#!/bin/sh
# A guest with metadata in a network namespace of its own, as Firecracker's jailer has it: netns.sh NAMESPACE COMMAND...
# It begins once nothing for the metadata address leaves its tap, and what was made for it goes with it.
set -e
namespace=$1
shift
state=${IMDS_STATE:-/var/lib/imds-agent}
record="$state/instances/$namespace.json"

ip netns add "$namespace"
trap 'rm -f "$record"; ip netns delete "$namespace"' EXIT
ip -n "$namespace" tuntap add mode tap ${IMDS_TAP_USER:+user "$IMDS_TAP_USER"} name tap0
ip -n "$namespace" link set tap0 up

# The MAC is the one in the snapshot that all of them are clones of.
cat > "$state/instances/.$namespace" <<END
{
  "InstanceId": "i-$namespace",
  "NetworkInterfaces": [{ "MacAddress": "06:00:ac:10:00:02", "Tap": "$namespace/tap0" }]
}
END
mv "$state/instances/.$namespace" "$record"

imds-agent ${IMDS_CONFIG:+--config "$IMDS_CONFIG"} attach "$namespace/tap0"
"$@"
