"""What cloudbase-init, the cloud-init of Windows guests, finds at the metadata service, as one line of JSON."""

import base64
import json

from cloudbaseinit import conf
from cloudbaseinit.metadata.services import ec2service

conf.CONF([], project="cloudbase-init")
# A matter of Windows.
conf.CONF.set_override("add_metadata_private_ip_route", False, "ec2")
conf.CONF.set_override("retry_count", 0)

service = ec2service.EC2Service()
report = {"found": service.load()}
if report["found"]:
    report |= {
        "hostname": service.get_host_name(),
        "instance_id": service.get_instance_id(),
        "user_data": base64.b64encode(service.get_user_data()).decode(),
        "public_keys": service.get_public_keys(),
    }
print(json.dumps(report))
