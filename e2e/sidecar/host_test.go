package sidecar

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// network is what the machine's own network looks like: interfaces, routes,
// firewall rules and whether it forwards.
func network(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for name, command := range map[string][]string{
		"interfaces": {"ip", "-brief", "link"},
		"routes":     {"ip", "route", "show", "table", "all"},
		// Unlike iptables -S it makes no table by looking.
		"rules": {"iptables-save"},
	} {
		out, err := exec.Command(command[0], command[1:]...).Output()
		require.NoError(t, err, "%v", command)
		var lines []string
		for line := range strings.Lines(string(out)) {
			// Comments hold the time, and chains count packets.
			if line, _, _ = strings.Cut(strings.TrimSpace(line), "["); line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		found[name] = strings.Join(lines, "\n")
	}
	forwards, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	require.NoError(t, err)
	found["forwarding"] = string(bytes.TrimSpace(forwards))
	return found
}

// traces are mounts, control groups, processes and files of this machine that
// have one of the marks in their name. Other clusters may come and go beside
// this test, so that a plain comparison of before and after would prove nothing.
func traces(t *testing.T, marks []string) []string {
	t.Helper()
	marked := func(text string) bool {
		return slices.ContainsFunc(marks, func(mark string) bool { return strings.Contains(text, mark) })
	}
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if marked(line) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, process := range processes {
		if process == "/proc/"+strings.TrimSpace(readLink("/proc/self")) {
			continue
		}
		for _, file := range []string{"cmdline", "environ"} {
			// One that ends meanwhile is no trace.
			if text, err := os.ReadFile(filepath.Join(process, file)); err == nil && marked(string(text)) {
				found = append(found, "process "+process+" "+strings.ReplaceAll(string(text), "\x00", " "))
			}
		}
	}
	for _, folder := range []string{"/sys/fs/cgroup", "/run/netns", "/run/cni", "/var/lib/cni", "/dev/shm"} {
		_ = filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && marked(path) {
				found = append(found, path)
			}
			return nil // not there, or no longer
		})
	}
	return found
}

func readLink(path string) string {
	target, _ := os.Readlink(path)
	return target
}
