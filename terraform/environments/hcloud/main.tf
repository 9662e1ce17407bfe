# Machines at Hetzner Cloud: docs/operations.md has it from the empty project on.
module "cluster" {
  source = "../../modules/cluster"

  name    = var.name
  servers = var.servers
  pools = {
    edge     = { count = var.edge, first_host = 31, placements = ["edge"], node_pool = "edge" }
    services = { count = var.services, first_host = 301, placements = ["services"], node_pool = "services" }
    data     = { count = var.data, first_host = 151, placements = ["data"], node_pool = "data" }
  }
  network           = var.network
  other_networks    = var.other_networks
  keys              = var.keys
  operator_networks = var.operator_networks
  ntp_servers       = var.ntp_servers
  data_jobs         = var.data_jobs
  programs          = var.programs
  data_devices      = module.machines.data_devices
}

module "machines" {
  source = "../../modules/hcloud"

  name               = var.name
  nodes              = module.cluster.nodes
  user_data          = module.cluster.user_data
  fingerprints       = module.cluster.fingerprints
  network            = var.network
  location           = var.location
  image              = var.image
  server_types       = var.server_types
  data_volume        = var.data_volume
  delete_protection  = var.delete_protection
  operator_networks  = var.operator_networks
  ssh_key            = file("${var.keys}/ssh.pub")
  public_addresses   = var.public_addresses
  load_balancer_type = var.load_balancer_type
  certificates       = var.certificates
}
