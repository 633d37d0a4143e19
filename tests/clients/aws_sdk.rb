# What the AWS SDK for Ruby finds at the metadata service, as one line of JSON.
require "aws-sdk-core"
require "json"

credentials = Aws::InstanceProfileCredentials.new(disable_imds_v1: true).credentials
puts JSON.generate(
  credentials: [credentials.access_key_id, credentials.secret_access_key, credentials.session_token],
  instance_id: Aws::EC2Metadata.new.get("/latest/meta-data/instance-id")
)
