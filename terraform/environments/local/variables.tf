variable "name" {
  description = "The environment's name; libvirt's network, pool and machines have it too."
  type        = string
  default     = "local"
}

variable "keys" {
  description = "Folder that `marquee keys new` fills, for example .marquee/environments/local/keys."
  type        = string
}

variable "servers" {
  description = "How many servers: 1, 3, 5 or 7."
  type        = number
  default     = 3
}

variable "clients" {
  description = "How many machines run jobs. The first one has the databases."
  type        = number
  default     = 2
}

variable "server_memory" {
  description = "MiB of memory of a server."
  type        = number
  default     = 640
}

variable "client_memory" {
  description = "MiB of memory of a client."
  type        = number
  default     = 1024
}

variable "cpus" {
  description = "Virtual processors of a machine."
  type        = number
  default     = 1
}

variable "disk" {
  description = "GiB of a machine's disk."
  type        = number
  default     = 8
}

variable "network" {
  description = "The machines' network (CIDR, /16 to /24). The host has its first address, servers the 11th and following, clients the 101st and following."
  type        = string
  default     = "10.77.0.0/24"
}

variable "other_networks" {
  description = "Networks (CIDR) that the machines' network must not overlap, for example those that the host has already."
  type        = list(string)
  default     = []
}

variable "network_mode" {
  description = "none: machines reach each other and the host alone. nat or route: they reach what the host reaches."
  type        = string
  default     = "none"
}

variable "bridge" {
  description = "Name of the bridge on the host."
  type        = string
  default     = "marquee0"
}

variable "libvirt_uri" {
  description = "The libvirt to make machines in."
  type        = string
  default     = "qemu:///system"

  validation {
    condition     = can(regex("^qemu(\\+[a-z]+)?://", var.libvirt_uri))
    error_message = "libvirt_uri ${jsonencode(var.libvirt_uri)} does not lead to QEMU: for example qemu:///system."
  }
}

variable "domain_type" {
  description = "kvm, or qemu: emulation, for hosts where KVM is missing or broken."
  type        = string
  default     = "kvm"
}

variable "tuned" {
  description = "Notice a dead machine in about a second. By default with KVM alone: emulated machines stand still for longer than that."
  type        = bool
  default     = null
}

variable "image" {
  description = "Disk image of new machines, as `marquee vms image` makes it."
  type        = string
}

variable "previous_images" {
  description = "Images that machines still run from while they move to another one."
  type        = list(string)
  default     = []
}

variable "kernel" {
  description = "Kernel of new machines, as `marquee vms image` makes it."
  type        = string
}

variable "initrd" {
  description = "Initial RAM disk of new machines, as `marquee vms image` makes it."
  type        = string
}

variable "cmdline" {
  description = "More kernel arguments of new machines, each with a value."
  type        = map(string)
  default     = { mitigations = "off" }
}

variable "storage" {
  description = "Folder of the machines' disks. libvirt makes it."
  type        = string
}

variable "logs" {
  description = "Folder, which must exist, for what the machines write to their serial consoles; \"\" keeps none."
  type        = string
  default     = ""
}

variable "operator_networks" {
  description = "Networks (CIDR) from which operators reach ssh, and Nomad, Consul and the artifact store on servers. Empty is the host alone."
  type        = list(string)
  default     = []
}

variable "ntp_servers" {
  description = "Time servers that the cluster's servers ask. Without any, they agree among themselves."
  type        = list(string)
  default     = []
}

variable "data_jobs" {
  description = "Jobs whose data the machines for databases keep: the databases of nomad-jobs/services.hcl, and what else keeps data there."
  type        = list(string)
  default     = ["account-db", "device-db", "nats", "order-db"]
}

variable "box" {
  description = "Folder of the box of namespaces in which libvirt runs; \"\" is the host's own libvirt. Only handed on to the output environment."
  type        = string
  default     = ""
}
