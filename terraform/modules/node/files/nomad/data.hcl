# Machines that keep data alone: what Debian's Postgres needs in a task's chroot.
# Links are taken as they are: the loader in /lib64 is one to /lib/x86_64-linux-gnu.
client {
  chroot_env {
    "/lib64"                    = "/lib64"
    "/usr/bin/dash"             = "/bin/sh"
    "/usr/lib/postgresql"       = "/usr/lib/postgresql"
    "/usr/lib/x86_64-linux-gnu" = "/lib/x86_64-linux-gnu"
    "/usr/share/postgresql"     = "/usr/share/postgresql"
    "/usr/share/zoneinfo"       = "/usr/share/zoneinfo"
  }
}
