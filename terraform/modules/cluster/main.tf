# Which machines there are, and what each of them is made of.
locals {
  server_addresses = [for i in range(var.servers) : cidrhost(var.network, 11 + i)]

  machines = merge(concat(
    [{ for i in range(var.servers) : "server-${i + 1}" => { role = "server", host = 11 + i, placements = toset([]), node_pool = "default" } }],
    [for pool, p in var.pools : {
      for i in range(p.count) : "${pool}-${i + 1}" => {
        role       = "client"
        host       = p.first_host + i
        placements = i == 0 ? setunion(p.placements, p.first_placements) : p.placements
        node_pool  = p.node_pool
      }
    }],
  )...)
  nodes = {
    for name, m in local.machines : name => {
      name       = name
      role       = m.role
      address    = cidrhost(var.network, m.host)
      placements = m.placements
      node_pool  = m.node_pool
      interface  = var.interface
    }
  }
  edge_addresses = [for n in values(local.nodes) : n.address if contains(n.placements, "edge")]

  key_files   = concat(["ca.pem", "secrets.json", "ssh.pub"], flatten([for name in keys(local.machines) : ["nodes/${name}.pem", "nodes/${name}-key.pem"]]))
  token_names = ["consul_gossip", "nomad_gossip", "consul_management", "consul_nomad_server", "consul_nomad_client"]
  secrets     = jsondecode(file("${var.keys}/secrets.json"))
}

module "node" {
  source   = "../node"
  for_each = local.nodes

  node    = each.value
  servers = local.server_addresses
  secrets = {
    ca                = file("${var.keys}/ca.pem")
    certificate       = file("${var.keys}/nodes/${each.key}.pem")
    key               = file("${var.keys}/nodes/${each.key}-key.pem")
    consul_gossip     = local.secrets.consul_gossip
    nomad_gossip      = local.secrets.nomad_gossip
    consul_agent      = local.secrets.nodes[each.key]
    consul_nomad      = each.value.role == "server" ? local.secrets.consul_nomad_server : local.secrets.consul_nomad_client
    consul_management = each.value.role == "server" ? local.secrets.consul_management : ""
  }
  ssh_key           = file("${var.keys}/ssh.pub")
  cluster_addresses = ["${cidrhost(var.network, 2)}-${cidrhost(var.network, -2)}"]
  operator_networks = var.operator_networks
  static_network = !var.static_addresses ? null : {
    prefix       = tonumber(split("/", var.network)[1])
    gateway      = cidrhost(var.network, 1)
    name_servers = var.name_servers
  }
  tuned          = var.tuned
  ntp_servers    = var.ntp_servers
  programs       = var.programs
  extra_packages = var.extra_packages
  data_jobs      = var.data_jobs
  data_device    = lookup(var.data_devices, each.key, "")
}
