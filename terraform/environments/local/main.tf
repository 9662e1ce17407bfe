# Machines on this host through libvirt. `make vms` makes them; docs/operations.md
# has the same by hand.
module "cluster" {
  source = "../../modules/cluster"

  name    = var.name
  servers = var.servers
  pools = {
    client = { count = var.clients, first_host = 101, placements = ["edge", "services"], first_placements = ["data"] }
  }
  network           = var.network
  other_networks    = var.other_networks
  keys              = var.keys
  operator_networks = length(var.operator_networks) > 0 ? var.operator_networks : ["${cidrhost(var.network, 1)}/32"]
  interface         = "eth0"
  static_addresses  = true
  name_servers      = var.network_mode == "none" ? [] : [cidrhost(var.network, 1)]
  tuned             = var.tuned == null ? var.domain_type == "kvm" : var.tuned
  ntp_servers       = var.ntp_servers
  data_jobs         = var.data_jobs
}

module "machines" {
  source = "../../modules/libvirt"

  name            = var.name
  nodes           = module.cluster.nodes
  seed_scripts    = module.cluster.seed_scripts
  fingerprints    = module.cluster.fingerprints
  network         = var.network
  network_mode    = var.network_mode
  bridge          = var.bridge
  domain_type     = var.domain_type
  image           = var.image
  previous_images = var.previous_images
  kernel          = var.kernel
  initrd          = var.initrd
  cmdline         = var.cmdline
  storage         = var.storage
  logs            = var.logs
  memory          = { server = var.server_memory, client = var.client_memory }
  cpus            = var.cpus
  disk            = var.disk
}
