//go:build linux

// Command initrd is the first program a virtual machine runs: it loads the
// drivers of its disk, mounts it and hands over to systemd. A distribution's own
// takes ten seconds for it where the processor is emulated.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The disk appears within milliseconds of its driver.
const diskLimit = 10 * time.Second

func main() {
	err := run()
	fmt.Println("initrd:", err)
	// The kernel panics when its first program ends: the serial log has the reason.
	os.Exit(1)
}

// run returns only when it fails.
func run() error {
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	modules, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(modules)) {
		module, err := os.ReadFile("/modules/" + name)
		if err != nil {
			return err
		}
		if err := unix.InitModule(module, ""); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	if err := mountRoot("/dev/vda"); err != nil {
		return err
	}
	if err := unix.Mount("/dev", "/sysroot/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /dev: %w", err)
	}
	if err := os.Chdir("/sysroot"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return fmt.Errorf("run /sbin/init: %w", syscall.Exec("/sbin/init", []string{"/sbin/init"}, []string{"HOME=/", "TERM=linux"}))
}

func mountRoot(device string) error {
	deadline := time.Now().Add(diskLimit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		err := unix.Mount(device, "/sysroot", "ext4", unix.MS_NOATIME, "")
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("mount %s: %w", device, err)
		}
	}
	return nil
}
