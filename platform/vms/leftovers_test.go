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

	"github.com/marquee-ads/marquee/platform/vms/box"
)

const initArgument = "be-the-init-of-a-box"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == initArgument {
		if err := box.Init(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestLeftoversAreWhatTheStateDoesNotKnow(t *testing.T) {
	net := object{network, "local", "uuid-network", ""}
	disks := object{pool, "local", "uuid-pool", ""}
	image := object{volume, "disk.img", "/s/disk.img", "local"}
	root := object{volume, "client-1.qcow2", "/s/client-1.qcow2", "local"}
	seed := object{volume, "client-1.seed", "/s/client-1.seed", "local"}
	vm := object{domain, "local-client-1", "uuid-domain", ""}
	all := []object{net, disks, image, root, seed, vm}
	known := func(objects ...object) map[string]bool {
		ids := map[string]bool{}
		for _, o := range objects {
			ids[o.id] = true
		}
		return ids
	}
	for name, c := range map[string]struct {
		there []object
		known map[string]bool
		want  []object
	}{
		"nothing there":                       {nil, nil, nil},
		"nothing left":                        {all, known(all...), nil},
		"killed before the first state":       {all, nil, []object{vm, image, root, seed, disks, net}},
		"killed before a machine was known":   {all, known(net, disks, image, root, seed), []object{vm}},
		"killed between a disk and a machine": {[]object{net, disks, image, root}, known(net, disks, image), []object{root}},
		"the state knows more than there is":  {[]object{net}, known(all...), nil},
		"the state knows the machine before":  {all, known(net, disks, image, root, seed, object{domain, vm.name, "uuid-of-the-one-before", ""}), []object{vm}},
		"a pool of another making":            {all, known(net, object{id: "uuid-of-another"}, image, root, seed, vm), []object{image, root, seed, disks}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, append([]object(nil), leftovers(c.there, c.known)...))
		})
	}
}

func TestTerraformsStateSaysWhatItKnows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "terraform.tfstate")
	known, err := knownObjects(file)
	require.NoError(t, err)
	require.Nil(t, known)
	require.NoError(t, os.WriteFile(file, []byte(`{"version": 4, "resources": [
		{"type": "libvirt_domain", "instances": [{"index_key": "client-1", "attributes": {"id": "uuid-1"}}, {"index_key": "client-2", "attributes": {"id": "uuid-2"}}]},
		{"type": "libvirt_combustion", "instances": [{"attributes": {"id": "/s/client-1.seed;6f2d"}}]}]}`), 0o600))
	known, err = knownObjects(file)
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"uuid-1": true, "uuid-2": true, "/s/client-1.seed": true}, known)
	require.NoError(t, os.WriteFile(file, []byte(`{"version": 4, "resour`), 0o600))
	_, err = knownObjects(file)
	require.ErrorContains(t, err, "is damaged")
	require.ErrorContains(t, err, ".backup")
}

func TestInTheHostsLibvirtOnlyTheEnvironmentsOwnIsRemoved(t *testing.T) {
	e, err := Open(Config{Root: "/checkout", Name: "local"})
	require.NoError(t, err)
	e.settings.LibvirtURI = "qemu:///system"
	own := "<path>/checkout/.marquee/machines/local/storage</path>"
	other := "<path>/another/.marquee/machines/local/storage</path>"
	require.True(t, e.owns(pool, own))
	require.False(t, e.owns(pool, other))
	require.False(t, e.owns(domain, other))
	net := "<network><name>local</name><bridge name='%s'/><ip address='%s' netmask='255.255.255.0'/></network>"
	require.True(t, e.owns(network, fmt.Sprintf(net, "marquee0", "10.77.0.1")))
	require.False(t, e.owns(network, fmt.Sprintf(net, "virbr0", "10.77.0.1")))
	require.False(t, e.owns(network, fmt.Sprintf(net, "marquee0", "192.168.122.1")))
	e.settings.LibvirtURI = ""
	require.True(t, e.owns(pool, other), "in the box")
}

// What a killed apply made and could not note is taken out of a real libvirt.
func TestTidyRemovesWhatAnInterruptedApplyLeft(t *testing.T) {
	for _, program := range []string{"libvirtd", "virtlogd", "virsh", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	self, err := os.Executable()
	require.NoError(t, err)
	var said []string
	e, err := Open(Config{Root: t.TempDir(), Name: "local", Self: []string{self, initArgument}, Say: func(line string) { said = append(said, line) }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.box.Remove(context.WithoutCancel(ctx))) })
	require.NoError(t, e.box.Up(ctx))
	require.NoError(t, os.MkdirAll(e.storage(), 0o755))
	state := e.stateFile()
	virsh := func(args ...string) string {
		t.Helper()
		out, err := e.virsh(ctx, args...)
		require.NoError(t, err)
		return out
	}
	define := func(command, xml string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "object.xml")
		require.NoError(t, os.WriteFile(file, []byte(xml), 0o600))
		virsh(command, file)
	}
	machine := func(name string) {
		t.Helper()
		define("define", fmt.Sprintf(`<domain type="qemu"><name>%s</name><memory unit="MiB">64</memory><vcpu>1</vcpu><os><type arch="x86_64">hvm</type></os>
			<devices><disk type="file"><source file="%s/client-1.qcow2"/><target dev="vda" bus="virtio"/></disk></devices></domain>`, name, e.storage()))
	}
	half := func() {
		t.Helper()
		define("net-define", `<network><name>local</name><bridge name="marquee0"/><ip address="10.77.0.1" netmask="255.255.255.0"/></network>`)
		virsh("net-start", "local")
		define("pool-define", fmt.Sprintf(`<pool type="dir"><name>local</name><target><path>%s</path></target></pool>`, e.storage()))
		virsh("pool-start", "local")
		virsh("vol-create-as", "local", "client-1.qcow2", "1M", "--format", "qcow2")
		machine("local-client-1")
	}
	there := func() []object {
		t.Helper()
		all, err := e.objects(ctx)
		require.NoError(t, err)
		return all
	}

	require.NoError(t, e.tidy(ctx), "nothing is there")
	half()
	define("net-define", `<network><name>default</name><bridge name="virbr7"/><ip address="10.99.0.1" netmask="255.255.255.0"/></network>`)
	require.Len(t, there(), 4)
	virsh("pool-destroy", "local")
	require.NoError(t, e.tidy(ctx))
	require.Empty(t, there())
	require.NoFileExists(t, filepath.Join(e.storage(), "client-1.qcow2"))
	require.Equal(t, "default", virsh("net-list", "--all", "--name"), "it is nobody's here")
	require.Len(t, said, 4)
	require.Equal(t, "removing the machine local-client-1, which an interrupted apply left", said[0])

	// A second machine, of which the state was not told.
	half()
	var known []string
	for _, o := range there() {
		known = append(known, fmt.Sprintf(`{"instances": [{"attributes": {"id": %q}}]}`, o.id))
	}
	require.NoError(t, os.WriteFile(state, []byte(`{"resources": [`+strings.Join(known, ",")+`]}`), 0o600))
	kept := there()
	machine("local-client-2")
	virsh("start", "local-client-2")
	virsh("vol-create-as", "local", "client-2.qcow2", "1M", "--format", "qcow2")
	require.NoError(t, e.tidy(ctx))
	require.ElementsMatch(t, kept, there())

	// An environment that has served and lost its state keeps its machines.
	require.NoError(t, e.checkState())
	require.NoError(t, os.WriteFile(filepath.Join(e.dir, "environment.json"), []byte("{}"), 0o600))
	require.NoError(t, e.checkState())
	require.NoError(t, os.Remove(state))
	require.ErrorContains(t, e.apply(ctx, &terraform{dir: e.dir}), "bring it back")
	require.ElementsMatch(t, kept, there())
}
