package box

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// inABox runs the test that calls it in a box, in which it returns true.
func inABox(t *testing.T) bool {
	t.Helper()
	if Inside() {
		return true
	}
	requireRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	err := Run(ctx, &out, "-test.run=^"+t.Name()+"$", "-test.v=true", "-test.count=1")
	if errors.Is(err, ErrForbidden) {
		t.Skip("root may not make namespaces here")
	}
	require.NoError(t, err, "in the box:\n%s", &out)
	require.Contains(t, out.String(), "--- PASS: "+t.Name())
	return false
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skipf("networks need ip: %v: apt-get install iproute2", err)
	}
}

// room is a box with a network of two machines, and one outside that network.
func room(t *testing.T, ctx context.Context) (b *Box, one, two, outside *Machine) {
	t.Helper()
	b, err := Open(ctx)
	require.NoError(t, err)
	inner, err := b.Network(ctx, "10.88.0.0/24")
	require.NoError(t, err)
	require.NoError(t, inner.CallFrom(ctx, "10.89.0.1"))
	outer, err := b.Network(ctx, "198.51.100.0/24")
	require.NoError(t, err)
	folders := []Folder{{Path: "/var/lib/kept"}, {Path: "/var/lib/small", Limit: 1 << 20}}
	on := func(n *Network, name, address string) *Machine {
		m, err := n.Machine(Config{Name: name, Address: netip.MustParseAddr(address), Folders: folders, Files: map[string]string{"/etc/given": "/etc/hostname"}})
		require.NoError(t, err)
		require.NoError(t, m.On(ctx))
		return m
	}
	return b, on(inner, "one", "10.88.0.11"), on(inner, "two", "10.88.0.12"), on(outer, "outside", "198.51.100.2")
}

func ping(ctx context.Context, from, to *Machine) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(to.Address(), 7).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.ReadAll(conn)
	return err
}

// answer makes a machine say its name and its caller's address on port 7.
func answer(t *testing.T, ctx context.Context, m *Machine) {
	t.Helper()
	require.NoError(t, m.Start(ctx, "answer", []string{"PATH=/usr/bin:/bin"}, "perl", "-e", `
use Socket;
socket(my $s, PF_INET, SOCK_STREAM, 0) or die;
setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
bind($s, sockaddr_in(7, INADDR_ANY)) or die;
listen($s, 9) or die;
while (my $from = accept(my $c, $s)) {
  my ($port, $address) = sockaddr_in($from);
  syswrite($c, inet_ntoa($address) . "\n");
  close($c);
}`))
	require.Eventually(t, func() bool { return ping(ctx, m, m) == nil }, 10*time.Second, 10*time.Millisecond)
}

func TestMachines(t *testing.T) {
	if !inABox(t) {
		return
	}
	ctx := t.Context()
	_, one, two, outside := room(t, ctx)

	t.Run("AreApart", func(t *testing.T) {
		name, err := one.Run(ctx, "", "hostname")
		require.NoError(t, err)
		require.Equal(t, "one\n", name)
		// Its first process, the shell and what lists them: nobody else's.
		pids, err := one.Run(ctx, "", "sh", "-c", "ls -d /proc/[0-9]* | wc -l")
		require.NoError(t, err)
		require.LessOrEqual(t, len(strings.Fields(pids)), 4)
		require.NoError(t, os.WriteFile(one.Path("/var/lib/kept/file"), []byte("one's"), 0o600))
		text, err := one.Run(ctx, "", "cat", "/var/lib/kept/file")
		require.NoError(t, err)
		require.Equal(t, "one's", text)
		_, err = two.Run(ctx, "", "cat", "/var/lib/kept/file")
		require.ErrorContains(t, err, "ended with 1")
		_, err = one.Run(ctx, "", "sh", "-c", "echo x > /usr/file")
		require.ErrorContains(t, err, "Read-only")
		_, err = one.Run(ctx, "", "sh", "-c", "echo x > /etc/given")
		require.ErrorContains(t, err, "Read-only")
		_, err = one.Run(ctx, "", "ls", "/home")
		require.ErrorContains(t, err, "No such file")
	})

	t.Run("ControlGroups", func(t *testing.T) {
		// It is in the topmost group that it sees, or in the one leaf of that.
		text, err := one.Run(ctx, "", "sh", "-c", "cut -d: -f3 /proc/self/cgroup | sort -u")
		require.NoError(t, err)
		require.Contains(t, []string{"/\n", "/machine\n"}, text)
		_, err = one.Run(ctx, "", "sh", "-c", "for g in /sys/fs/cgroup /sys/fs/cgroup/*; do [ ! -e $g/cgroup.procs ] || mkdir $g/mine || exit 1; done")
		require.NoError(t, err)
		text, err = two.Run(ctx, "", "sh", "-c", "ls -d /sys/fs/cgroup/mine /sys/fs/cgroup/*/mine 2>/dev/null | wc -l")
		require.NoError(t, err)
		require.Equal(t, "0\n", text)
	})

	t.Run("Input", func(t *testing.T) {
		text, err := one.Run(ctx, "through", "cat")
		require.NoError(t, err)
		require.Equal(t, "through", text)
		_, err = one.Run(ctx, "", "no-such-program")
		require.ErrorContains(t, err, "no-such-program is not in")
	})

	t.Run("Network", func(t *testing.T) {
		answer(t, ctx, one)
		for from, address := range map[*Machine]string{two: "10.88.0.12", outside: "198.51.100.2"} {
			conn, err := from.Dial(ctx, "tcp", "10.88.0.11:7")
			require.NoError(t, err)
			line, err := bufio.NewReader(conn).ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, address+"\n", line)
			conn.Close()
		}
	})

	t.Run("UnplugAndPlug", func(t *testing.T) {
		require.NoError(t, ping(ctx, two, one))
		require.NoError(t, one.Unplug(ctx))
		require.Error(t, ping(ctx, two, one))
		require.NoError(t, ping(ctx, one, one), "it goes on running")
		require.NoError(t, one.Plug(ctx))
		require.Eventually(t, func() bool { return ping(ctx, two, one) == nil }, 10*time.Second, 10*time.Millisecond)
	})

	t.Run("StopLeavesChildren", func(t *testing.T) {
		require.NoError(t, two.Start(ctx, "parent", []string{"PATH=/usr/bin:/bin"}, "sh", "-c", "sleep 300 & wait"))
		child := func() bool {
			out, err := two.Run(ctx, "", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
			require.NoError(t, err)
			return strings.Contains(out, "sleep 300")
		}
		require.Eventually(t, child, 10*time.Second, 10*time.Millisecond)
		require.ErrorContains(t, two.Start(ctx, "parent", nil, "true"), "runs already")
		require.NoError(t, two.Stop(ctx, "parent", syscall.SIGKILL))
		running, err := two.Running(ctx)
		require.NoError(t, err)
		require.Empty(t, running)
		require.True(t, child())
		require.ErrorContains(t, two.Stop(ctx, "parent", syscall.SIGKILL), "does not run")
	})

	t.Run("FullDisk", func(t *testing.T) {
		_, err := one.Run(ctx, "", "dd", "if=/dev/zero", "of=/var/lib/small/file", "bs=64k", "count=100")
		require.ErrorContains(t, err, "No space left")
		require.NoError(t, os.WriteFile(one.Path("/var/lib/kept/other"), make([]byte, 2<<20), 0o600))
		require.NoError(t, os.Remove(one.Path("/var/lib/small/file")))
	})

	t.Run("OffAndOn", func(t *testing.T) {
		require.NoError(t, one.Off())
		require.Error(t, ping(ctx, two, one))
		_, err := one.Run(ctx, "", "true")
		require.ErrorContains(t, err, "is off")
		require.NoError(t, one.On(ctx))
		text, err := one.Run(ctx, "", "cat", "/var/lib/kept/file")
		require.NoError(t, err)
		require.Equal(t, "one's", text)
		answer(t, ctx, one)
		require.NoError(t, ping(ctx, two, one))
	})
}

// The program that started a box is killed: nothing is left of the box, neither
// processes nor control groups.
func TestNothingIsLeft(t *testing.T) {
	const victimVariable = "MARQUEE_BOX_VICTIM"
	if Inside() {
		b, one, _, _ := room(t, t.Context())
		require.NoError(t, one.Start(t.Context(), "sleep", nil, "sleep", "300"))
		// As a program that divides its machine's processors among tasks.
		_, err := one.Run(t.Context(), "", "sh", "-c", "for g in /sys/fs/cgroup /sys/fs/cgroup/*; do [ ! -e $g/cgroup.procs ] || mkdir -p $g/below/further || exit 1; done")
		require.NoError(t, err)
		fmt.Println("up as", b.name)
		<-t.Context().Done()
	}
	requireRoot(t)
	if os.Getenv(victimVariable) != "" {
		require.NoError(t, Run(t.Context(), os.Stdout, "-test.run=^TestNothingIsLeft$"))
		return
	}
	victim := exec.Command("/proc/self/exe", "-test.run=^TestNothingIsLeft$")
	victim.Env = append(os.Environ(), victimVariable+"=1")
	output, err := victim.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, victim.Start())
	t.Cleanup(func() { _ = victim.Process.Kill() })
	var name string
	lines := bufio.NewScanner(output)
	for name == "" && lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "up as %s", &name); err != nil {
			require.NotContains(t, lines.Text(), ErrForbidden.Error())
		}
	}
	require.NotEmpty(t, name, "the box did not come up")
	left := func() []string {
		var found []string
		groups, err := groupsOf(groupPrefix + name + "-")
		require.NoError(t, err)
		found = append(found, groups...)
		environs, err := filepath.Glob("/proc/[0-9]*/environ")
		require.NoError(t, err)
		for _, file := range environs {
			text, err := os.ReadFile(file)
			if err == nil && (bytes.Contains(text, []byte(nameVariable+"="+name+"\x00")) || bytes.Contains(text, []byte(victimVariable+"=1"))) {
				found = append(found, file)
			}
		}
		return found
	}
	before := left()
	require.True(t, slices.ContainsFunc(before, func(path string) bool { return strings.HasPrefix(path, groupsFolder) }), "control groups: %v", before)
	require.True(t, slices.ContainsFunc(before, func(path string) bool { return strings.HasPrefix(path, "/proc") }), "processes: %v", before)
	require.NoError(t, victim.Process.Kill())
	_ = victim.Wait()
	require.Eventually(t, func() bool { return len(left()) == 0 }, 15*time.Second, 20*time.Millisecond, "left: %v", left())
}
