output "environment" {
  description = "What environment.json holds: where Nomad and Consul are, whom to trust, which machines there are."
  value       = merge(module.cluster.environment, { box = var.box })
}

output "nodes" {
  description = "The machines: name to role, address, placements, node pool, name in libvirt and file of the serial console."
  value       = module.machines.nodes
}

output "outdated" {
  description = "Machines that would be made differently now; replace them one at a time."
  value       = module.machines.outdated
}
