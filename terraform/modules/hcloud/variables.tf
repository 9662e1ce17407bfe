variable "name" {
  description = "Name of the environment, which names everything in the project."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$", var.name))
    error_message = "name ${jsonencode(var.name)}: lower-case letters, digits and dashes, a letter first, at most 32."
  }
}

variable "nodes" {
  description = "The machines, as module cluster gives them: name to role (server or client), address and placements. What stands before the number of a name is its pool."
  type = map(object({
    role       = string
    address    = string
    placements = optional(set(string), [])
    node_pool  = optional(string, "default")
  }))

  validation {
    condition     = length(var.nodes) > 0 && alltrue([for name in keys(var.nodes) : can(regex("^[a-z][a-z0-9-]*-[1-9][0-9]*$", name))])
    error_message = "nodes needs machines with names such as edge-1: ${join(", ", keys(var.nodes))}."
  }
  validation {
    condition     = alltrue([for n in values(var.nodes) : contains(["server", "client"], n.role)])
    error_message = "nodes: a role is server or client, not ${join(", ", [for n in values(var.nodes) : n.role if !contains(["server", "client"], n.role)])}."
  }
  validation {
    condition     = alltrue([for n in values(var.nodes) : try(cidrhost("${n.address}/${split("/", var.network)[1]}", 0) == cidrhost(var.network, 0), false)])
    error_message = "nodes: every address must be in ${var.network}: ${join(", ", [for n in values(var.nodes) : n.address])}."
  }
  validation {
    condition     = length([for n in values(var.nodes) : n if contains(n.placements, "edge")]) > 0
    error_message = "nodes: no machine has the placement edge, so nothing could be reached."
  }
}

variable "user_data" {
  description = "cloud-init configuration by machine, as module cluster gives them."
  type        = map(string)
  sensitive   = true

  validation {
    condition     = length(setsubtract(keys(var.nodes), nonsensitive(keys(var.user_data)))) == 0
    error_message = "user_data has none for ${join(", ", setsubtract(keys(var.nodes), nonsensitive(keys(var.user_data))))}."
  }
}

variable "fingerprints" {
  description = "What each configuration can be told apart by, as module cluster gives them."
  type        = map(string)

  validation {
    condition     = length(setsubtract(keys(var.nodes), keys(var.fingerprints))) == 0
    error_message = "fingerprints has none for ${join(", ", setsubtract(keys(var.nodes), keys(var.fingerprints)))}."
  }
}

variable "network" {
  description = "The private network of the machines and the load balancer (CIDR)."
  type        = string

  validation {
    condition     = can(cidrhost(var.network, 0)) && can(cidrnetmask(var.network))
    error_message = "network ${jsonencode(var.network)} is not an IPv4 network: give a CIDR, for example 10.80.0.0/16."
  }
}

variable "location" {
  description = "Location of everything: fsn1, nbg1, hel1, ash, hil or sin."
  type        = string
  default     = "fsn1"

  validation {
    condition     = contains(["fsn1", "nbg1", "hel1", "ash", "hil", "sin"], var.location)
    error_message = "location ${jsonencode(var.location)} is unknown: it is fsn1, nbg1, hel1, ash, hil or sin."
  }
}

variable "image" {
  description = "Image of new machines: debian-12, or the number of a snapshot made of it."
  type        = string
  default     = "debian-12"

  validation {
    condition     = can(regex("^(debian-12|[1-9][0-9]*)$", var.image))
    error_message = "image ${jsonencode(var.image)}: machines are Debian 12; give debian-12 or the number of a snapshot made of it."
  }
}

variable "server_types" {
  description = "Server type of new machines by pool, for example { server = \"cx22\", edge = \"cx22\" }."
  type        = map(string)

  validation {
    condition     = length(setsubtract([for name in keys(var.nodes) : replace(name, "/-[0-9]+$/", "")], keys(var.server_types))) == 0
    error_message = "server_types has none for the pool ${join(", ", setsubtract([for name in keys(var.nodes) : replace(name, "/-[0-9]+$/", "")], keys(var.server_types)))}."
  }
  validation {
    condition     = alltrue([for t in values(var.server_types) : can(regex("^c[a-z]{1,2}[0-9]{2}$", t))])
    error_message = "server_types: a type is for example cx22, cpx31 or ccx13, not ${join(", ", values(var.server_types))}."
  }
}

variable "data_volume" {
  description = "GiB of the volume of each machine with the placement data. It outlives the machine."
  type        = number
  default     = 20

  validation {
    condition     = var.data_volume >= 10 && var.data_volume <= 10240 && floor(var.data_volume) == var.data_volume
    error_message = "data_volume is ${var.data_volume} GiB: volumes have 10 to 10240."
  }
}

variable "delete_protection" {
  description = "Refuse to delete volumes with data, the load balancer and the network until this is false."
  type        = bool
  default     = true
}

variable "operator_networks" {
  description = "Networks (IPv4 CIDR) from which operators reach ssh on every machine, and on servers the APIs of Nomad (4646), Consul (8501) and the artifact store (4700)."
  type        = list(string)

  validation {
    condition     = length(var.operator_networks) > 0 && alltrue([for c in var.operator_networks : can(cidrnetmask(c)) && !endswith(c, "/0")])
    error_message = "operator_networks must be the IPv4 networks that operators come from, at least one and not everybody: ${jsonencode(var.operator_networks)}."
  }
}

variable "ssh_key" {
  description = "Public key of the operators. The project must not have it under another name."
  type        = string

  validation {
    condition     = can(regex("^(ssh-ed25519|ecdsa-sha2-nistp[0-9]+|ssh-rsa) ", var.ssh_key))
    error_message = "ssh_key must be one public key, for example the content of keys/ssh.pub."
  }
}

variable "public_addresses" {
  description = "Machines have public addresses, behind a firewall that lets operators in alone. Without, the private network needs a way to the internet of its own, and operators one into it."
  type        = bool
  default     = true
}

variable "load_balancer_type" {
  description = "Type of the load balancer: lb11, lb21 or lb31."
  type        = string
  default     = "lb11"

  validation {
    condition     = contains(["lb11", "lb21", "lb31"], var.load_balancer_type)
    error_message = "load_balancer_type ${jsonencode(var.load_balancer_type)} is unknown: it is lb11, lb21 or lb31."
  }
}

variable "certificates" {
  description = "Numbers of the certificates, in the same project, that the load balancer shows on port 443. Made outside of Terraform, so that their keys are not in its state."
  type        = list(number)

  validation {
    condition     = length(var.certificates) > 0 && alltrue([for c in var.certificates : c > 0 && floor(c) == c])
    error_message = "certificates must be numbers of certificates in the project, at least one (hcloud certificate create): tokens and passwords never travel without TLS."
  }
}
