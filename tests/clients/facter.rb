# What Puppet's Facter finds at the metadata service, as one line of JSON. It would ask on EC2 and on KVM only.
require "facter"
require "json"

Facter.value("os")
puts JSON.generate(
  metadata: Facter::Resolvers::Ec2.resolve(:metadata),
  user_data: Facter::Resolvers::Ec2.resolve(:userdata)
)
