#!/bin/sh
# A guest of plain QEMU with metadata, from nothing: qemu.sh <what else the machine has: memory, disk, console ...>
set -e
state=${IMDS_STATE:-/var/lib/imds-agent}
mac=52:54:00:12:34:56

ip tuntap add mode tap name tap0
ip link set tap0 up

cat > "$state/instances/.first" <<END
{
  "InstanceId": "i-0123456789abcdef0",
  "Placement": { "AvailabilityZone": "home-1a" },
  "NetworkInterfaces": [{ "MacAddress": "$mac", "Tap": "tap0", "PrivateIpAddress": "10.0.0.2" }]
}
END
mv "$state/instances/.first" "$state/instances/first.json"

exec qemu-system-x86_64 "$@" \
    -netdev tap,id=net0,ifname=tap0,script=no,downscript=no \
    -device virtio-net-pci,netdev=net0,mac=$mac
