package environment

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/marquee-ads/marquee/platform/vms/box"
)

// dialInBox connects in the network of a box. A socket belongs to the network in
// which it was made, wherever it is used.
func dialInBox(ctx context.Context, folder string, dialer *net.Dialer, network, address string) (net.Conn, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("the machines are in the box %s: run this inside: marquee vms shell", folder)
	}
	b, err := box.New(folder)
	if err != nil {
		return nil, err
	}
	line, err := b.Command("true")
	if err != nil {
		return nil, fmt.Errorf("%w: make vms starts it", err)
	}
	target := slices.Index(line, "--target")
	if target < 0 || target+1 >= len(line) {
		return nil, fmt.Errorf("the box %s does not say which process it is", folder)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// A thread keeps the network that it entered: it is not unlocked, and
		// ends with the goroutine. Dialling one address stays on it.
		runtime.LockOSThread()
		file, err := os.Open("/proc/" + line[target+1] + "/ns/net")
		if err != nil {
			done <- result{err: fmt.Errorf("enter the box %s: %w", folder, err)}
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter the box %s: %w", folder, err)}
			return
		}
		conn, err := dialer.DialContext(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
