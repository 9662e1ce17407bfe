output "nodes" {
  description = "The machines: name to role, address, placements and node pool."
  value       = local.nodes
}

output "seed_scripts" {
  description = "Shell script of each machine, for images with programs and packages. Holds the machine's secrets."
  value       = { for name, n in module.node : name => n.seed_script }
  sensitive   = true
}

output "user_data" {
  description = "cloud-init configuration of each machine. Holds the machine's secrets."
  value       = { for name, n in module.node : name => n.user_data }
  sensitive   = true
}

output "fingerprints" {
  description = "SHA-256 of what each machine is made of."
  value       = { for name, n in module.node : name => n.fingerprint }
}

output "environment" {
  description = "Where the cluster is and how to trust it, as environment.json has it: the first server's APIs, the CA's file, the addresses of servers and of machines that take calls from outside."
  value = {
    name        = var.name
    nomad_addr  = "https://${local.server_addresses[0]}:4646"
    consul_addr = "https://${local.server_addresses[0]}:8501"
    ca_file     = abspath("${var.keys}/ca.pem")
    servers     = local.server_addresses
    edge        = local.edge_addresses
  }
}
