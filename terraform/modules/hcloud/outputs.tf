output "nodes" {
  description = "The machines: name to role, address in the private network, placements, node pool, and the address at which operators reach it."
  value = {
    for name, n in var.nodes : name => merge(n, {
      operator_address = var.public_addresses ? hcloud_server.machine[name].ipv4_address : n.address
    })
  }
}

output "load_balancer" {
  description = "Public addresses of the edge."
  value = {
    ipv4 = hcloud_load_balancer.edge.ipv4
    ipv6 = hcloud_load_balancer.edge.ipv6
  }
}

output "data_devices" {
  description = "Block device of the volume of each machine with the placement data."
  value       = { for name, v in hcloud_volume.data : name => v.linux_device }
}

output "outdated" {
  description = "Machines that would be made differently now: other certificates, keys or settings. Apply leaves them; replace them one at a time."
  value       = sort([for name, m in terraform_data.made_of : name if m.input != var.fingerprints[name]])
}
