locals {
  servers = [for name, n in module.machines.nodes : n.operator_address if n.role == "server"]
}

output "environment" {
  description = "What environment.json holds: where Nomad and Consul are, whom to trust, which machines there are."
  value = merge(module.cluster.environment, {
    nomad_addr  = "https://${local.servers[0]}:4646"
    consul_addr = "https://${local.servers[0]}:8501"
    servers     = local.servers
    edge        = [module.machines.load_balancer.ipv4]
    box         = ""
  })
}

output "nodes" {
  description = "The machines: name to role, address in the private network, placements, node pool, and the address at which operators reach it."
  value       = module.machines.nodes
}

output "load_balancer" {
  description = "Public addresses of the edge, for the DNS."
  value       = module.machines.load_balancer
}

output "outdated" {
  description = "Machines that would be made differently now; replace them one at a time."
  value       = module.machines.outdated
}
