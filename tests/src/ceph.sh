# A Ceph cluster of one monitor, one storage daemon that keeps everything in memory, and a gateway, with a user for the host
# and two roles. It says `ready` when the gateway has begun, and then obeys the words `stop` and `start`.
set -e
mkdir /tmp/ceph && cd /tmp/ceph
export CEPH_CONF=/tmp/ceph/ceph.conf
cluster=7d2f6b1e-5a0c-4a3b-9c0d-1b2c3d4e5f60
storage=3d2f6b1e-5a0c-4a3b-9c0d-1b2c3d4e5f61
monitor='[v2:127.0.0.1:3300,v1:127.0.0.1:6789]'
cat > ceph.conf <<END
[global]
fsid = $cluster
mon host = $monitor
mon initial members = a
public network = 127.0.0.0/8
keyring = /tmp/ceph/keyring
run dir = /tmp/ceph
admin socket = /tmp/ceph/\$name.\$pid.asok
log file = /tmp/ceph/\$name.log
mon data = /tmp/ceph/mon
mon allow pool size one = true
osd data = /tmp/ceph/osd
osd objectstore = memstore
memstore device bytes = 268435456
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
rgw frontends = beast endpoint=0.0.0.0:8000
rgw s3 auth use sts = true
rgw sts key = abcdefghijklmnop
END

key() { ceph-authtool $3 keyring --gen-key --name "$1" --cap mon "$2" --cap osd 'allow *'; }
key mon. 'allow *' --create-keyring
key client.admin 'allow *'
key osd.0 'allow profile osd'
mkdir mon osd
monmaptool --create --addv a "$monitor" --fsid $cluster monmap
ceph-mon -i a --mkfs --monmap monmap --keyring keyring
ceph-mon -i a -f &
ceph osd new $storage
ceph-osd -i 0 --mkfs --osd-uuid $storage
ceph-osd -i 0 -f &

radosgw-admin user create --uid=host --display-name=host --access-key="$1" --secret-key="$2"
trust() { echo '{"Statement":[{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam:::user/'$1'"]},"Action":["sts:AssumeRole"]}]}'; }
radosgw-admin role create --role-name=web-server --assume-role-policy-doc="$(trust host)"
radosgw-admin role-policy put --role-name=web-server --policy-name=all \
    --policy-doc='{"Statement":[{"Effect":"Allow","Action":["s3:*"],"Resource":"arn:aws:s3:::*"}]}'
radosgw-admin role create --role-name=of-others --assume-role-policy-doc="$(trust nobody)"

start() {
    radosgw -n client.admin -f &
    gateway=$!
    echo ready >&3
}
start
while read -r word; do
    case $word in
    start) start ;;
    stop)
        kill -KILL $gateway
        wait $gateway || true
        echo stopped >&3
        ;;
    esac
done
