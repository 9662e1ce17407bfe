output "user_data" {
  description = "cloud-init configuration that makes this machine of a plain Debian 12 image. Holds the machine's secrets."
  value       = local.user_data
  sensitive   = true

  precondition {
    condition     = nonsensitive(length(local.user_data)) <= 32768
    error_message = "The configuration of ${var.node.name} has ${nonsensitive(length(local.user_data))} bytes, and clouds take 32768: give fewer programs, packages or keys."
  }
}

output "seed_script" {
  description = "Shell script that makes this machine of an image that has the packages and programs already. Holds the machine's secrets. The same files and commands as user_data."
  value       = local.seed_script
  sensitive   = true
}

output "files" {
  description = "Every file that both write: path to mode and content."
  value       = { for f in local.files : f.path => { mode = f.mode, content = f.content } }
  sensitive   = true
}

output "fingerprint" {
  description = "SHA-256 over all files and commands: changes when the machine would be made differently."
  value       = nonsensitive(sha256(local.seed_script))
}
