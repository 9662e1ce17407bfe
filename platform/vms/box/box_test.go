package box

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const initArgument = "be-the-init-of-a-box"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == initArgument {
		if err := Init(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// needs skips where the host has no libvirt: make e2e-vms has.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

func newBox(t *testing.T, dir string) *Box {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	b, err := New(dir, self, initArgument)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Remove(context.Background())) })
	return b
}

func TestTwoBoxesHaveTheSameNetworkAndDoNotMeet(t *testing.T) {
	needs(t, "libvirtd", "virtlogd", "virsh")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hostLinks, err := os.ReadDir("/sys/class/net")
	require.NoError(t, err)

	network := filepath.Join(t.TempDir(), "network.xml")
	require.NoError(t, os.WriteFile(network, []byte(
		`<network><name>test</name><bridge name="virbr9"/><ip address="10.99.0.1" netmask="255.255.255.0"/></network>`), 0o600))
	var boxes []*Box
	for range 2 {
		b := newBox(t, filepath.Join(t.TempDir(), "box"))
		require.NoError(t, b.Up(ctx))
		require.NoError(t, b.Up(ctx), "a second call does nothing")
		uri, err := b.URI()
		require.NoError(t, err)
		out, err := exec.CommandContext(ctx, "virsh", "-c", uri, "net-create", network).CombinedOutput()
		require.NoError(t, err, "%s", out)
		boxes = append(boxes, b)
	}
	for _, b := range boxes {
		cmd, err := b.Enter(ctx, "cat", "/proc/net/dev")
		require.NoError(t, err)
		out, err := cmd.Output()
		require.NoError(t, err)
		require.Contains(t, string(out), "virbr9:")
	}
	after, err := os.ReadDir("/sys/class/net")
	require.NoError(t, err)
	require.Len(t, after, len(hostLinks), "the host has no new interface")

	first, _ := boxes[0].process()
	require.NoError(t, boxes[0].Remove(ctx))
	require.False(t, first.lives())
	require.False(t, boxes[0].Running())
	require.NoDirExists(t, boxes[0].Dir())
	require.True(t, boxes[1].Running(), "the other one runs on")
	require.Empty(t, processesOf(t, boxes[0].Dir()))
	_, err = boxes[0].Command("true")
	require.ErrorIs(t, err, ErrNotRunning)
}

// processesOf are the command lines that name a folder.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var found []string
	for _, path := range paths {
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(dir)) {
			found = append(found, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return found
}

func TestADeepFolderIsReachedThroughAShortLink(t *testing.T) {
	needs(t, "libvirtd", "virtlogd", "virsh")
	deep := filepath.Join(t.TempDir(), strings.Repeat("deep/", 25), "box")
	b := newBox(t, deep)
	t.Setenv("TMPDIR", "/tmp")
	require.NoError(t, b.Up(t.Context()))
	socket, err := b.shortSocket()
	require.NoError(t, err)
	require.LessOrEqual(t, len(socket), maxSocketPath)
	uri, err := b.URI()
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "virsh", "-c", uri, "version").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, b.Down(t.Context()))
	require.NoFileExists(t, b.link())

	t.Setenv("TMPDIR", "/tmp/"+strings.Repeat("x", 100))
	require.ErrorContains(t, b.Up(t.Context()), "TMPDIR")
}

func TestABoxThatCannotStartSaysWhy(t *testing.T) {
	needs(t, "unshare")
	b, err := New(filepath.Join(t.TempDir(), "box"), "/bin/sh", "-c", "echo no libvirtd here; exit 3")
	require.NoError(t, err)
	err = b.Up(t.Context())
	require.ErrorContains(t, err, "no libvirtd here")
	require.False(t, b.Running())

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	b, err = New(filepath.Join(t.TempDir(), "box"), "/bin/sh", "-c", "exec sleep 4711.4711")
	require.NoError(t, err)
	require.ErrorIs(t, b.Up(ctx), context.DeadlineExceeded)
	require.Eventually(t, func() bool { return len(processesOf(t, "4711.4711")) == 0 }, 5*time.Second, 20*time.Millisecond,
		"what was started is ended")
}

func TestANumberThatWasGivenAwayAgainIsNotTheBox(t *testing.T) {
	b, err := New(t.TempDir())
	require.NoError(t, err)
	text := fmt.Sprintf(`{"pid":%d,"started":"1"}`, os.Getpid())
	require.NoError(t, os.WriteFile(filepath.Join(b.Dir(), "process.json"), []byte(text), 0o600))
	require.False(t, b.Running())
	require.NoError(t, b.Down(t.Context()), "and this process is not killed")
}
