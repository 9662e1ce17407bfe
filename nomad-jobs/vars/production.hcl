# A cluster of machines as terraform/ makes them: what `marquee jobs deploy --env
# NAME` runs. An environment's own values go beside its state, into
# .marquee/environments/<name>/jobs.hcl, or into NAME=VALUE of --var.
#
# By hand, where NOMAD_ADDR and NOMAD_TOKEN are set (marquee vms shell sets them):
#
#   nomad job run -hcl2-strict=false -var-file=nomad-jobs/vars/production.hcl \
#     -var environment=NAME -var account_artifact=http://127.0.0.1:4700/SHA256/accountd \
#     nomad-jobs/account.nomad.hcl

environment = "production"
mode        = "production"
driver      = "exec"

# Machines are told apart by metadata (marquee nodes meta), not by pools.
datacenters = ["*"]
node_pool   = "all"
placement   = true

# The agent on each machine, on loopback alone.
consul_address = "https://127.0.0.1:8501"
consul_ca_file = "/etc/marquee/tls/ca.pem"

# The mesh is spoken on the machines' private addresses. Only the gateway's doors
# are reachable from outside; the load balancer in front ends TLS.
host_network        = "private"
public_host_network = "public"
gateway_http_port   = 8080
gateway_grpc_port   = 8081
gateway_device_port = 1883
behind_tls          = true
# The service that displays would be led to does not run on machines yet.
gateway_devices = false

# A machine that Nomad hears nothing of is given up 2 s after it missed its time,
# which with the agents' tuned settings is 1 to 5 s after it was killed. What failed
# by itself is placed anew after Nomad's least delay.
lost_after       = "2s"
reschedule_delay = "5s"

# Two of each, spread over machines: one machine may be lost or drained.
account_count  = 2
account_min    = 2
gateway_count  = 2
gateway_min    = 2
distinct_hosts = false

# The data stays on the machine that offers it as a host volume: account-db-data
# for account-db, and so on.
postgres_host_volumes = true
postgres_data_folder  = "/var/lib/marquee/volumes"
postgres_bin_dir      = "/usr/lib/postgresql/15/bin"

# Measured, not guessed: `marquee jobs list --usage` after 300 sign-ups, 16 at a
# time, beside 300 calls a second to two instances of account and one gateway
# showed at most accountd 185 MiB and 800 MHz (250 MHz without the sign-ups),
# gatewayd 82 MiB and 120 MHz (315 MiB with 10,000 half-open connections),
# postgresd 77 MiB and 100 MHz, meshproxyd 18 MiB and 50 MHz. Memory is a limit,
# CPU a share: a task may take what others leave. Measure again when the load is
# another.
account_cpu     = 300
account_memory  = 256
gateway_cpu     = 200
gateway_memory  = 384
postgres_cpu    = 200
postgres_memory = 256
