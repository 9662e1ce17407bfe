package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func kernelModules(t *testing.T, dep, builtin string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o600))
	for line := range strings.Lines(dep) {
		path, _, _ := strings.Cut(line, ":")
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, path), []byte("code of "+path), 0o600))
	}
	return dir
}

const dep = `kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
`

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	dir := kernelModules(t, dep, "kernel/fs/ext4/ext4.ko\n")
	order, err := moduleOrder(dir, diskModules())
	require.NoError(t, err)
	require.Equal(t, []string{
		"kernel/drivers/virtio/virtio_ring.ko", "kernel/drivers/virtio/virtio.ko",
		"kernel/drivers/virtio/virtio_pci.ko", "kernel/drivers/block/virtio_blk.ko",
	}, order)

	_, err = moduleOrder(kernelModules(t, dep, ""), diskModules())
	require.ErrorContains(t, err, "no module ext4")
}

func TestTheInitrdIsAnArchiveInTheOrderOfLoading(t *testing.T) {
	dir := kernelModules(t, dep, "kernel/fs/ext4/ext4.ko\n")
	program, initrd := filepath.Join(t.TempDir(), "init"), filepath.Join(t.TempDir(), "initrd")
	require.NoError(t, os.WriteFile(program, []byte("odd"), 0o700))
	require.NoError(t, writeInitrd(t.Context(), program, dir, initrd))
	archive, err := os.ReadFile(initrd)
	require.NoError(t, err)
	names, contents := unpack(t, archive)
	require.Equal(t, []string{"dev", "sysroot", "modules", "init", "modules/virtio_ring", "modules/virtio", "modules/virtio_pci",
		"modules/virtio_blk", "modules/order", "TRAILER!!!"}, names)
	require.Equal(t, "odd", contents["init"])
	require.Equal(t, "virtio_ring\nvirtio\nvirtio_pci\nvirtio_blk\n", contents["modules/order"])
	require.Equal(t, "code of kernel/drivers/block/virtio_blk.ko", contents["modules/virtio_blk"])
}

// unpack reads a cpio archive as the kernel's document has it: thirteen numbers
// of eight hex digits, name, data, each of the two padded to four bytes.
func unpack(t *testing.T, archive []byte) (names []string, contents map[string]string) {
	t.Helper()
	contents = map[string]string{}
	align := func(at int) int { return (at + 3) &^ 3 }
	for at := 0; at < len(archive); {
		require.Equal(t, "070701", string(archive[at:at+6]))
		field := func(n int) int {
			v, err := strconv.ParseUint(string(archive[at+6+8*n:at+14+8*n]), 16, 32)
			require.NoError(t, err)
			return int(v)
		}
		size, nameSize := field(6), field(11)
		name := string(archive[at+110 : at+110+nameSize-1])
		data := align(at + 110 + nameSize)
		names, contents[name] = append(names, name), string(archive[data:data+size])
		at = align(data + size)
	}
	return names, contents
}

func someInputs(t *testing.T) inputs {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"consul", "initrd", "unit"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
	}
	return inputs{
		programs: map[string]string{"consul": filepath.Join(dir, "consul")}, initrd: filepath.Join(dir, "initrd"),
		files: map[string]string{"/etc/systemd/system/consul.service": filepath.Join(dir, "unit")},
	}
}

func TestEveryInputIsInTheStamp(t *testing.T) {
	in := someInputs(t)
	before, err := in.stamp()
	require.NoError(t, err)
	again, err := in.stamp()
	require.NoError(t, err)
	require.Equal(t, before, again)
	seen := map[string]string{before: "nothing"}
	for _, path := range []string{in.programs["consul"], in.initrd, in.files["/etc/systemd/system/consul.service"]} {
		require.NoError(t, os.WriteFile(path, []byte("changed"), 0o600))
		stamp, err := in.stamp()
		require.NoError(t, err)
		require.Empty(t, seen[stamp], "a changed %s", path)
		seen[stamp] = path
	}
	in.files["/etc/systemd/system/nomad.service"] = in.files["/etc/systemd/system/consul.service"]
	stamp, err := in.stamp()
	require.NoError(t, err)
	require.Empty(t, seen[stamp], "another file")
}

// fakeDebian puts an mmdebstrap on PATH that does what a script says.
func fakeDebian(t *testing.T, script string) {
	t.Helper()
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "mmdebstrap"), []byte("#!/bin/sh\n"+script), 0o700))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if err := exec.Command("unshare", append(namespace()[1:], "true")...).Run(); err != nil {
		t.Skipf("no namespaces here: %v", err)
	}
}

func TestAnImageThatIsNotFinishedIsNotUsedAndNotLeft(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(Folder(root), ".building-killed", "out"), 0o755))
	leftovers := func() []string {
		left, err := filepath.Glob(filepath.Join(Folder(root), ".building-*"))
		require.NoError(t, err)
		return left
	}
	fakeDebian(t, "echo 'E: no such mirror' >&2; exit 9")
	_, err := build(t.Context(), Options{Root: root}, someInputs(t), "0123456789ab")
	require.ErrorContains(t, err, "no such mirror")
	require.Empty(t, leftovers())
	_, err = Open(root, "0123456789ab")
	require.ErrorIs(t, err, os.ErrNotExist)

	fakeDebian(t, "echo begun > $TMPDIR/begun; sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	var said []string
	_, err = build(ctx, Options{Root: root, Progress: func(line string) {
		said = append(said, line)
		if strings.Contains(line, "installing") {
			cancel()
		}
	}}, someInputs(t), "0123456789ab")
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, leftovers(), fmt.Sprint(said))
}

func TestPruneKeepsTheNewestAndTheUsed(t *testing.T) {
	root := t.TempDir()
	for i, stamp := range []string{"oldest", "used", "newest"} {
		require.NoError(t, os.MkdirAll(filepath.Join(Folder(root), stamp), 0o755))
		text := fmt.Sprintf(`{"stamp":%q,"built":"2026-01-0%dT00:00:00Z"}`, stamp, i+1)
		require.NoError(t, os.WriteFile(filepath.Join(Folder(root), stamp, "image.json"), []byte(text), 0o600))
	}
	require.NoError(t, Prune(root, func(stamp string) bool { return stamp == "used" }))
	require.NoDirExists(t, filepath.Join(Folder(root), "oldest"))
	require.DirExists(t, filepath.Join(Folder(root), "used"))
	require.DirExists(t, filepath.Join(Folder(root), "newest"))
}
