# The platform's jobs: what `marquee up` deploys. Read by platform/stack.
#
# service "NAME" is the job file nomad-jobs/NAME.nomad.hcl, whose variable
# NAME_binary takes the program NAMEd. It may have
#
#   database = true        a Postgres of its own: the job NAME-db, from
#                          nomad-jobs/postgres.nomad.hcl. NAME finds the password
#                          in its Nomad variable, field database_password.
#   events   = true        it publishes or consumes events: NATS, the job nats, is
#                          there then, and NAME has a user and a password of its
#                          own there. NAME finds it in its Nomad variable, field
#                          nats_password.
#   secrets  = ["FIELD"]   256 random bits in base64 for each, made once and kept
#                          in the Nomad variable nomad/jobs/NAME.
#   local    = true        only on this machine's cluster, not on machines.
#
# The job players is none of these: it is the demo's, see platform/stack/demo.go.

service "account" {
  database = true
  secrets  = ["key_encryption_key"]
}

service "gateway" {}

# Machines have no store for media that they share yet, and no certificate for
# displays; with gateway_devices in vars/production.hcl this goes.
service "device" {
  database = true
  events   = true
  local    = true
}

# Sells what device has, and shows what is uploaded there: where that is.
service "order" {
  database = true
  events   = true
  local    = true
}
