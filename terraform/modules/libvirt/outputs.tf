output "nodes" {
  description = "The machines: name to role, address, placements, node pool, name in libvirt and file of the serial console."
  value = {
    for name, n in var.nodes : name => merge(n, {
      domain = libvirt_domain.machine[name].name
      log    = var.logs == "" ? "" : "${var.logs}/${name}.log"
    })
  }
}

output "outdated" {
  description = "Machines that would be made differently now: other certificates, keys or settings. Apply leaves them; replace them one at a time."
  value       = sort([for name, m in terraform_data.made_of : name if m.input != var.fingerprints[name]])
}
