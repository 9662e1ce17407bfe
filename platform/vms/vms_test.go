package vms

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/tools"
)

func TestBadSettingsAreRefusedWithTheFix(t *testing.T) {
	require.NoError(t, defaults().valid())
	for name, c := range map[string]struct {
		change func(*Settings)
		says   string
	}{
		"even servers":     {func(s *Settings) { s.Servers = 2 }, "1, 3, 5 or 7"},
		"no servers":       {func(s *Settings) { s.Servers = -1 }, "1, 3, 5 or 7"},
		"negative":         {func(s *Settings) { s.Clients = -1 }, "0 to 100"},
		"small server":     {func(s *Settings) { s.ServerMemory = 128 }, "512 MiB"},
		"small client":     {func(s *Settings) { s.ClientMemory = 128 }, "640 MiB"},
		"no network":       {func(s *Settings) { s.Network = "ten" }, "10.77.0.0/24"},
		"host bits":        {func(s *Settings) { s.Network = "10.77.0.1/24" }, "10.77.0.0/24"},
		"another size":     {func(s *Settings) { s.Network = "10.77.0.0/16" }, "10.77.0.0/24"},
		"a public one":     {func(s *Settings) { s.Network = "8.8.8.0/24" }, "private network"},
		"no libvirt's":     {func(s *Settings) { s.LibvirtURI = "system" }, "qemu:///system"},
		"sixth version":    {func(s *Settings) { s.Network = "fd00::/64" }, "private network"},
		"too many":         {func(s *Settings) { s.Clients = 101 }, "0 to 100"},
		"too many to lead": {func(s *Settings) { s.Servers = 9 }, "1, 3, 5 or 7"},
	} {
		t.Run(name, func(t *testing.T) {
			s := defaults()
			c.change(&s)
			require.ErrorContains(t, s.valid(), c.says)
		})
	}
}

func TestASecondCallChangesOnlyWhatItIsTold(t *testing.T) {
	root := t.TempDir()
	open := func(want Settings, noClients bool) *Environment {
		e, err := Open(Config{Root: root, Name: "local", Want: want, NoClients: noClients})
		require.NoError(t, err)
		return e
	}
	e := open(Settings{Servers: 1, Clients: 3, ClientMemory: 800}, false)
	require.False(t, e.Exists())
	require.NoError(t, e.merge())
	require.NoError(t, os.MkdirAll(e.dir, 0o700))
	require.NoError(t, e.save())

	e = open(Settings{Clients: 4}, false)
	require.NoError(t, e.merge())
	require.Equal(t, Settings{Servers: 1, Clients: 4, ServerMemory: 640, ClientMemory: 800, Network: "10.77.0.0/24"}, e.Settings())
	nodes := e.Nodes()
	require.Len(t, nodes, 5)
	require.Equal(t, "10.77.0.11", nodes[0].Address)
	require.Equal(t, "10.77.0.104", nodes[4].Address)

	e = open(Settings{}, true)
	require.NoError(t, e.merge())
	require.Zero(t, e.Settings().Clients)
	require.ErrorContains(t, open(Settings{LibvirtURI: "qemu:///system"}, false).merge(), "destroy first")
	require.ErrorContains(t, open(Settings{Network: "10.78.0.0/24"}, false).merge(), "destroy first")

	require.NoError(t, os.WriteFile(e.settingsFile(), []byte("{"), 0o600))
	e, err := Open(Config{Root: root, Name: "local"})
	require.ErrorIs(t, err, ErrBroken)
	require.NoError(t, e.Destroy(t.Context(), false))
	left, err := os.ReadDir(filepath.Dir(e.Dir()))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestOneAtATime(t *testing.T) {
	root := t.TempDir()
	e, err := Open(Config{Root: root, Name: "local"})
	require.NoError(t, err)
	unlock, err := e.lock()
	require.NoError(t, err)
	_, err = e.lock()
	require.ErrorContains(t, err, "another marquee vms works on local")
	unlock()
	unlock, err = e.lock()
	require.NoError(t, err)

	// The Terraform of a process that was killed goes on.
	tf, _ := fakeTerraform(t, `echo 'libvirt_domain.vm["client-1"]: Creating...'; exec sleep 100`)
	runs := make(chan string, 1)
	tf.held, tf.say = e.held, func(line string) { runs <- line }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := tf.run(ctx, time.Minute, "apply")
		ended <- err
	}()
	select {
	case <-runs:
	case err := <-ended:
		require.FailNow(t, "it has ended", err)
	}
	unlock() // as the kernel does for who is killed
	_, err = e.lock()
	require.ErrorContains(t, err, "the Terraform that a killed one left")
	cancel()
	require.Error(t, <-ended)
	unlock, err = e.lock()
	require.NoError(t, err)
	unlock()
}

func TestALibvirtThatIsNotThereIsRefusedBeforeAnythingIsMade(t *testing.T) {
	if m := missing(false); m != nil {
		t.Skip(m)
	}
	e, err := Open(Config{Root: t.TempDir(), Name: "local", Want: Settings{LibvirtURI: "qemu+unix:///system?socket=/nowhere"}})
	require.NoError(t, err)
	_, err = e.Up(t.Context())
	require.ErrorContains(t, err, "libvirt does not answer at qemu+unix:///system?socket=/nowhere")
	require.ErrorContains(t, err, "leave --libvirt-uri out")
	require.NoDirExists(t, e.Dir())
	require.NoError(t, e.Destroy(t.Context(), false))
}

func TestAnEnvironmentOfOtherMachinesIsLeftAlone(t *testing.T) {
	root := t.TempDir()
	e, err := Open(Config{Root: root, Name: "hcloud"})
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(e.Dir(), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(e.Dir(), "environment.json"), []byte("{}"), 0o600))
	_, err = e.Up(t.Context())
	require.ErrorContains(t, err, "another name")
	require.ErrorContains(t, e.Destroy(t.Context(), false), "other machines")
	require.FileExists(t, filepath.Join(e.Dir(), "environment.json"))
	_, err = Open(Config{Root: root, Name: "../up"})
	require.Error(t, err)
}

func TestDestroyKeepsKeysWhenTold(t *testing.T) {
	root := t.TempDir()
	e, err := Open(Config{Root: root, Name: "local"})
	require.NoError(t, err)
	for _, dir := range []string{"keys", "box/run", "machines/storage"} {
		require.NoError(t, os.MkdirAll(filepath.Join(e.Dir(), dir), 0o700))
	}
	require.NoError(t, e.save())
	require.NoError(t, e.Destroy(t.Context(), true))
	left, err := os.ReadDir(e.Dir())
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, "keys", left[0].Name())
}

func TestMemory(t *testing.T) {
	require.NoError(t, checkMemory(7168, 3, 640, 2, 1536, 0), "the defaults fit into 7 GiB")
	err := checkMemory(4000, 3, 640, 2, 1024, 0)
	require.ErrorContains(t, err, "not enough memory")
	require.ErrorContains(t, err, "4000 MiB are free")
	require.ErrorContains(t, err, "--servers 1")
	require.NoError(t, checkMemory(1000, 3, 640, 2, 1024, 5400), "machines that run already hold theirs")
	free, err := availableMemory()
	require.NoError(t, err)
	require.Positive(t, free)
}

func TestNetworksThatOverlap(t *testing.T) {
	require.NoError(t, checkNetwork("203.0.113.0/24"))
	err := checkNetwork("127.0.0.0/24") // the loopback's is 127.0.0.0/8
	require.ErrorContains(t, err, "--network 127.0.0.0/24 overlaps 127.0.0.0/8, where this host has lo: choose another")
}

func TestDisk(t *testing.T) {
	require.NoError(t, checkDisk(t.TempDir(), 0, true))
	require.ErrorContains(t, checkDisk(t.TempDir(), 1<<30, true), "not enough disk space")
}

func TestMissingPackagesAreNamedWithTheLineThatInstallsThem(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	m := missing(true)
	require.NotNil(t, m, "an ordinary PATH is not all that is looked at, but these are not in sbin")
	require.Contains(t, m.Packages, "mmdebstrap")
	require.Contains(t, m.Error(), "apt-get install --yes --no-install-recommends ")
	require.Contains(t, m.Error(), "INSTALL=1")
	counted := map[string]int{}
	for _, p := range m.Packages {
		counted[p]++
		require.Equal(t, 1, counted[p], "%s is named once", p)
	}
	require.ErrorContains(t, EnsurePackages(t.Context(), true, false, nil), "mmdebstrap")
}

func TestAPanicIsFoundWithItsReason(t *testing.T) {
	log := filepath.Join(t.TempDir(), "server-1.log")
	require.NoError(t, panicked(log), "a machine that has not written yet")
	boot := "[    0.000000] Linux version 6.1.0\r\n[    1.0] ok\r\n"
	bad := boot + "initrd: mount /dev/vda: no such device\r\n[    2.0] Kernel panic - not syncing: Attempted to kill init!\r\n[    2.1] CPU: 0\r\n"
	require.NoError(t, os.WriteFile(log, []byte(boot), 0o600))
	require.NoError(t, panicked(log))
	require.NoError(t, os.WriteFile(log, []byte(bad), 0o600))
	err := panicked(log)
	require.ErrorContains(t, err, "no such device")
	require.ErrorContains(t, err, "Attempted to kill init")
	require.NoError(t, os.WriteFile(log, []byte(bad+strings.Repeat("x", consoleEnd)+boot), 0o600))
	require.NoError(t, panicked(log), "it was started again")
}

// fakeTerraform is a program that does what a script says.
func fakeTerraform(t *testing.T, script string) (*terraform, *[]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "terraform")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700))
	said := &[]string{}
	return &terraform{program: tools.Terraform{Program: path, Name: "terraform"}, chdir: "/", dir: t.TempDir(),
		say: func(line string) { *said = append(*said, line) }}, said
}

func TestTerraformsStepsAreShown(t *testing.T) {
	tf, said := fakeTerraform(t, `echo 'libvirt_domain.vm["client-1"]: Creating...'
echo 'noise'
echo 'libvirt_domain.vm["client-1"]: Creation complete after 3s [id=1]'`)
	require.NoError(t, tf.apply(t.Context()))
	require.Equal(t, []string{`terraform: libvirt_domain.vm["client-1"]: Creating...`, `terraform: libvirt_domain.vm["client-1"]: Creation complete after 3s`}, *said)
}

func TestTerraformsErrorIsShown(t *testing.T) {
	tf, _ := fakeTerraform(t, `echo 'Error: no network called x' >&2; exit 1`)
	require.ErrorContains(t, tf.apply(t.Context()), "no network called x")
}

func TestAPlanWithChangesIsNoError(t *testing.T) {
	tf, _ := fakeTerraform(t, `echo 'running: false -> true'; exit 2`)
	changes, err := tf.changes(t.Context())
	require.NoError(t, err)
	require.Contains(t, changes, "false -> true")
	tf, _ = fakeTerraform(t, `exit 0`)
	changes, err = tf.changes(t.Context())
	require.NoError(t, err)
	require.Empty(t, changes)
	tf, _ = fakeTerraform(t, `exit 1`)
	_, err = tf.changes(t.Context())
	require.Error(t, err)
}

func TestATerraformThatHangsIsInterruptedAndItsProvidersEnd(t *testing.T) {
	mark := fmt.Sprintf("%d.5", 100000+time.Now().UnixNano()%100000)
	tf, _ := fakeTerraform(t, `sleep `+mark+` > /dev/null 2>&1 & trap 'echo saved > '"$TF_DATA_DIR"'.saved; exit 1' INT; while :; do sleep 0.1; done`)
	_, err := tf.run(t.Context(), 500*time.Millisecond, "plan")
	require.ErrorIs(t, err, errTook)
	require.FileExists(t, filepath.Join(tf.dir, "terraform-data.saved"), "it was asked, not killed")
	require.Eventually(t, func() bool {
		return exec.Command("pgrep", "-f", "sleep "+mark).Run() != nil
	}, 5*time.Second, 50*time.Millisecond, "the provider has ended")

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = tf.run(ctx, time.Minute, "plan")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "interrupted")
}

func TestATrialBootThatDoesNotGetAnywhereIsBounded(t *testing.T) {
	device := filepath.Join(t.TempDir(), "kvm")
	require.ErrorIs(t, tryKVM(t.Context(), device, "vmlinuz"), os.ErrNotExist, "no KVM")
	require.NoError(t, os.WriteFile(device, nil, 0o600))
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	qemu := func(script string) {
		require.NoError(t, os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), []byte("#!/bin/sh\n"+script), 0o700))
	}
	qemu(`echo 'failed to set MSR' >&2; exit 134`)
	require.ErrorContains(t, tryKVM(t.Context(), device, "vmlinuz"), "failed to set MSR")
	qemu(`exit 0`)
	require.ErrorContains(t, tryKVM(t.Context(), device, "vmlinuz"), "ended early")
	qemu(`for a; do case $a in file:*) echo 'Unable to mount root fs' > ${a#file:};; esac; done`)
	require.NoError(t, tryKVM(t.Context(), device, "vmlinuz"))
	qemu(`exec sleep 100`)
	start := time.Now()
	require.ErrorContains(t, tryKVM(t.Context(), device, "vmlinuz"), "did not get anywhere")
	require.Less(t, time.Since(start), 2*trialLimit)
}

func TestProgressSaysWhereTheMachinesAre(t *testing.T) {
	e, err := Open(Config{Root: t.TempDir(), Name: "local", Want: Settings{Servers: 1, Clients: 2}})
	require.NoError(t, err)
	require.NoError(t, e.merge())
	w := &watch{e: e, nodes: e.Nodes(), reached: map[string]string{}}
	require.Equal(t, "booting: server-1 client-1 client-2", w.summary())
	w.reached["server-1"], w.reached["client-1"] = "sshd", "sshd"
	require.Equal(t, "booting: client-2; sshd: server-1", w.summary())
	require.NoError(t, os.MkdirAll(filepath.Dir(e.SerialLog("client-2")), 0o700))
	require.NoError(t, os.WriteFile(e.SerialLog("client-2"), []byte("initrd: mount /dev/vda: no such device\n"), 0o600))
	require.Contains(t, w.lastWords(), "client-2's console ends with:\ninitrd: mount /dev/vda")
	w.reached["server-1"], w.reached["client-2"] = "nomad", "sshd"
	require.Empty(t, w.summary(), "the operator does not reach the agents of clients")
	require.Empty(t, w.lastWords())
}

func TestImagesOfOtherEnvironmentsAreKept(t *testing.T) {
	root := t.TempDir()
	for name, settings := range map[string]Settings{
		"one": {Image: "aaa"}, "two": {Image: "bbb", OlderImages: map[string]string{"client-1": "ccc", "client-9": "ddd"}},
	} {
		e, err := Open(Config{Root: root, Name: name})
		require.NoError(t, err)
		e.settings.Image, e.settings.OlderImages = settings.Image, settings.OlderImages
		require.NoError(t, os.MkdirAll(e.Dir(), 0o700))
		require.NoError(t, e.save())
	}
	two, err := Open(Config{Root: root, Name: "two"})
	require.NoError(t, err)
	used, err := two.usedImages()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"aaa", "bbb", "ccc", "ddd"}, used)
	require.NoError(t, two.merge())
	require.Equal(t, map[string]string{"client-1": "ccc"}, two.Settings().OlderImages, "a machine that goes needs no image")
}
