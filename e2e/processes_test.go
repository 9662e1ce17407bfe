package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// processes are those of a service's job by allocation.
func processes(t *testing.T, program string) map[string]int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	found := map[string]int{}
	for _, path := range all {
		exe, err := os.Readlink(filepath.Join(filepath.Dir(path), "exe"))
		if err != nil || filepath.Base(exe) != program {
			continue
		}
		environ, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(environ, []byte(the.Cluster().Dir()+"/")) {
			continue // of another cluster
		}
		for _, variable := range strings.Split(string(environ), "\x00") {
			if alloc, ok := strings.CutPrefix(variable, "NOMAD_ALLOC_ID="); ok {
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				require.NoError(t, err)
				found[alloc] = pid
			}
		}
	}
	return found
}

// kill ends n processes of a program as a crash would, and returns them by
// allocation.
func kill(t *testing.T, program string, n int) map[string]int {
	t.Helper()
	killed := map[string]int{}
	for alloc, pid := range processes(t, program) {
		if len(killed) == n {
			break
		}
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		killed[alloc] = pid
	}
	require.Len(t, killed, n, "%s processes to kill", program)
	return killed
}

// socket is a row of the kernel's list of TCP sockets.
type socket struct {
	local, remote int // ports
	inode         string
}

// States of sockets, as the kernel writes them.
const (
	established = "01"
	listens     = "0A"
)

// sockets are the machine's TCP sockets in a state.
func sockets(t *testing.T, state string) []socket {
	t.Helper()
	var found []socket
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if os.IsNotExist(err) {
			continue // without IPv6
		}
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != state {
				continue
			}
			port := func(address string) int { // 0100007F:1F90
				_, number, _ := strings.Cut(address, ":")
				port, err := strconv.ParseUint(number, 16, 16)
				require.NoError(t, err, "%s of %s", address, table)
				return int(port)
			}
			found = append(found, socket{local: port(fields[1]), remote: port(fields[2]), inode: fields[9]})
		}
	}
	return found
}

// connectionsTo are the established TCP connections to some ports, each as its
// two ports.
func connectionsTo(t *testing.T, ports ...int) []string {
	t.Helper()
	var found []string
	for _, s := range sockets(t, established) {
		if slices.Contains(ports, s.remote) {
			found = append(found, fmt.Sprintf("%d to %d", s.local, s.remote))
		}
	}
	return found
}

// listeners are the TCP ports on which processes of allocations listen, with
// the program's name.
func listeners(t *testing.T) map[int]string {
	t.Helper()
	ports := map[string]int{} // by inode
	for _, s := range sockets(t, listens) {
		ports[s.inode] = s.local
	}
	found := map[int]string{}
	processes, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, dir := range processes {
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !strings.Contains(string(environ), "NOMAD_ALLOC_ID=") || !strings.Contains(string(environ), the.Cluster().Dir()+"/") {
			continue
		}
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		links, _ := filepath.Glob(filepath.Join(dir, "fd", "*"))
		for _, link := range links {
			target, _ := os.Readlink(link)
			inode, ok := strings.CutPrefix(target, "socket:[")
			if !ok {
				continue
			}
			if port, ok := ports[strings.TrimSuffix(inode, "]")]; ok {
				found[port] = filepath.Base(exe)
			}
		}
	}
	return found
}
