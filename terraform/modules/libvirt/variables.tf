variable "name" {
  description = "Name of the environment, which names the network, the pool and, before a dash, every machine in libvirt."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$", var.name))
    error_message = "name ${jsonencode(var.name)}: lower-case letters, digits and dashes, a letter first, at most 32."
  }
}

variable "nodes" {
  description = "The machines, as module cluster gives them: name to role (server or client) and address."
  type = map(object({
    role       = string
    address    = string
    placements = optional(set(string), [])
    node_pool  = optional(string, "default")
  }))

  validation {
    condition     = length(var.nodes) > 0
    error_message = "nodes is empty: there is nothing to make."
  }
  validation {
    condition     = alltrue([for n in values(var.nodes) : contains(["server", "client"], n.role)])
    error_message = "nodes: a role is server or client, not ${join(", ", [for n in values(var.nodes) : n.role if !contains(["server", "client"], n.role)])}."
  }
  validation {
    condition     = alltrue([for n in values(var.nodes) : try(cidrhost("${n.address}/${split("/", var.network)[1]}", 0) == cidrhost(var.network, 0), false)])
    error_message = "nodes: every address must be in ${var.network}: ${join(", ", [for n in values(var.nodes) : n.address])}."
  }
}

variable "seed_scripts" {
  description = "Shell script by machine that makes it of the image, as module cluster gives them."
  type        = map(string)
  sensitive   = true

  validation {
    condition     = length(setsubtract(keys(var.nodes), nonsensitive(keys(var.seed_scripts)))) == 0
    error_message = "seed_scripts has none for ${join(", ", setsubtract(keys(var.nodes), nonsensitive(keys(var.seed_scripts))))}."
  }
}

variable "fingerprints" {
  description = "What each seed script can be told apart by, as module cluster gives them."
  type        = map(string)

  validation {
    condition     = length(setsubtract(keys(var.nodes), keys(var.fingerprints))) == 0
    error_message = "fingerprints has none for ${join(", ", setsubtract(keys(var.nodes), keys(var.fingerprints)))}."
  }
}

variable "network" {
  description = "The machines' network (CIDR). The host has its first address."
  type        = string

  validation {
    condition     = can(cidrhost(var.network, 0)) && can(cidrnetmask(var.network))
    error_message = "network ${jsonencode(var.network)} is not an IPv4 network: give a CIDR, for example 10.77.0.0/24."
  }
}

variable "network_mode" {
  description = "none: machines reach each other and the host alone. nat or route: they reach what the host reaches."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["none", "nat", "route"], var.network_mode)
    error_message = "network_mode ${jsonencode(var.network_mode)} is unknown: it is none, nat or route."
  }
}

variable "bridge" {
  description = "Name of the bridge on the host."
  type        = string
  default     = "marquee0"

  validation {
    condition     = can(regex("^[a-z][a-z0-9._-]{0,14}$", var.bridge))
    error_message = "bridge ${jsonencode(var.bridge)} cannot name a network interface: at most 15 lower-case letters, digits, dots and dashes."
  }
}

variable "domain_type" {
  description = "kvm, or qemu: emulation, for hosts where KVM is missing or broken."
  type        = string
  default     = "kvm"

  validation {
    condition     = contains(["kvm", "qemu"], var.domain_type)
    error_message = "domain_type ${jsonencode(var.domain_type)} is unknown: it is kvm or qemu."
  }
}

variable "image" {
  description = "The machines' disk image (qcow2 or raw), with an ext4 file system labelled root and no partitions. Another image has another file name."
  type        = string

  validation {
    condition     = fileexists(var.image)
    error_message = "There is no image ${var.image}: `marquee vms image` makes it."
  }
}

variable "previous_images" {
  description = "Images that machines still run from while they move to another one, one at a time."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for i in var.previous_images : fileexists(i)])
    error_message = "previous_images: there is no ${join(", ", [for i in var.previous_images : i if !fileexists(i)])}."
  }
  validation {
    condition     = length(distinct([for i in concat([var.image], var.previous_images) : basename(i)])) == 1 + length(var.previous_images)
    error_message = "previous_images: image and previous_images need different file names."
  }
}

variable "kernel" {
  description = "Kernel that new machines boot."
  type        = string

  validation {
    condition     = fileexists(var.kernel)
    error_message = "There is no kernel ${var.kernel}: `marquee vms image` makes it."
  }
}

variable "initrd" {
  description = "Initial RAM disk of the kernel, which mounts the file system labelled root."
  type        = string

  validation {
    condition     = fileexists(var.initrd)
    error_message = "There is no initrd ${var.initrd}: `marquee vms image` makes it."
  }
}

variable "cmdline" {
  description = "Kernel arguments besides root and console. Only with values: a bare flag is read back differently and would replace the machine at every apply."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for k, v in var.cmdline : can(regex("^[a-zA-Z0-9._-]+$", k)) && can(regex("^[^ \"]+$", v))])
    error_message = "cmdline needs a value for each name, without blanks and quotes: ${jsonencode(var.cmdline)}."
  }
}

variable "storage" {
  description = "Folder of the machines' disks. libvirt makes it."
  type        = string

  validation {
    condition     = startswith(var.storage, "/")
    error_message = "storage ${jsonencode(var.storage)} must be an absolute path."
  }
}

variable "logs" {
  description = "Folder, which must exist, for what each machine writes to its serial console; \"\" keeps none."
  type        = string
  default     = ""

  validation {
    condition     = var.logs == "" || startswith(var.logs, "/")
    error_message = "logs ${jsonencode(var.logs)} must be an absolute path or \"\"."
  }
}

variable "memory" {
  description = "MiB of memory of a server and of a client."
  type = object({
    server = number
    client = number
  })
  default = { server = 640, client = 1024 }

  validation {
    condition     = alltrue([for m in [var.memory.server, var.memory.client] : m >= 384 && m <= 1048576 && floor(m) == m])
    error_message = "memory is ${var.memory.server} and ${var.memory.client} MiB: Consul and Nomad need 384 MiB at the least."
  }
}

variable "cpus" {
  description = "Virtual processors of a machine."
  type        = number
  default     = 1

  validation {
    condition     = var.cpus >= 1 && var.cpus <= 64 && floor(var.cpus) == var.cpus
    error_message = "cpus is ${var.cpus}: give 1 to 64."
  }
}

variable "disk" {
  description = "GiB of a machine's disk, at least the image's. Takes room on the host as it fills."
  type        = number
  default     = 8

  validation {
    condition     = var.disk >= 1 && var.disk <= 4096 && floor(var.disk) == var.disk
    error_message = "disk is ${var.disk} GiB: give 1 to 4096."
  }
}
