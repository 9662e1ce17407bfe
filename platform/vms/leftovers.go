package vms

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// object is a thing in libvirt that Terraform makes.
type object struct {
	kind objectKind
	name string
	id   string // by which Terraform's state knows it: a UUID, and a volume's path
	pool string // a volume's
}

type objectKind int

// The kinds, in the order in which they can be removed.
const (
	domain objectKind = iota
	volume
	pool
	network
)

func (o object) String() string {
	return [...]string{"machine", "volume", "pool", "network"}[o.kind] + " " + o.name
}

// leftovers are the objects that the state does not know, in the order in which
// they can be removed. A killed Terraform leaves them, and the next would refuse
// to make what is there already. Names do not tell: of a machine that was being
// made again, the state may know the one before.
func leftovers(there []object, known map[string]bool) []object {
	left := slices.DeleteFunc(slices.Clone(there), func(o object) bool {
		// Without its pool no volume is found, whatever the state says of it.
		lost := o.kind == volume && slices.ContainsFunc(there, func(p object) bool {
			return p.kind == pool && p.name == o.pool && !known[p.id]
		})
		return known[o.id] && !lost
	})
	slices.SortStableFunc(left, func(a, b object) int { return cmp.Compare(a.kind, b.kind) })
	return left
}

// knownObjects are the ids of what Terraform's state says there is; nil where
// there is no state.
func knownObjects(stateFile string) (map[string]bool, error) {
	text, err := os.ReadFile(stateFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Terraform's state: %w", err)
	}
	var state struct {
		Resources []struct {
			Instances []struct {
				Attributes struct {
					ID string `json:"id"`
				} `json:"attributes"`
			} `json:"instances"`
		} `json:"resources"`
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return nil, fmt.Errorf("the state of Terraform, %s, is damaged: %w: bring it back from %s.backup, or marquee vms destroy, then up", stateFile, err, stateFile)
	}
	known := map[string]bool{}
	for _, resource := range state.Resources {
		for _, instance := range resource.Instances {
			// A volume with a text in it has a number after its path.
			id, _, _ := strings.Cut(instance.Attributes.ID, ";")
			known[id] = true
		}
	}
	return known, nil
}

// tidy removes from libvirt what an interrupted apply made and its state does not
// know. In a libvirt that is not the environment's own, what another may have
// made under the same name stays.
func (e *Environment) tidy(ctx context.Context) error {
	known, err := knownObjects(e.stateFile())
	if err != nil {
		return err
	}
	there, err := e.objects(ctx)
	if err != nil {
		return fmt.Errorf("look in libvirt for what an interrupted apply left: %w", err)
	}
	for _, o := range leftovers(there, known) {
		e.config.Say(fmt.Sprintf("removing the %s, which an interrupted apply left", o))
		if err := e.remove(ctx, o); err != nil {
			return fmt.Errorf("remove the %s, which an interrupted apply left: %w", o, err)
		}
	}
	return nil
}

// checkState refuses to go on where an environment that has served lost its
// state: its machines and their data are no leftovers.
func (e *Environment) checkState() error {
	if _, err := os.Stat(e.stateFile()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(e.dir, "environment.json")); err == nil {
		return fmt.Errorf("the state of Terraform, %s, is gone, and the machines have been serving: bring it back, or marquee vms destroy, then up", e.stateFile())
	}
	return nil
}

// objects are the environment's in libvirt.
func (e *Environment) objects(ctx context.Context) ([]object, error) {
	var found []object
	foreign := false
	for _, list := range []struct {
		kind                   objectKind
		names, id, description string // virsh's commands
		named                  func(name string) bool
	}{
		{domain, "list", "domuuid", "dumpxml", func(name string) bool { return strings.HasPrefix(name, e.domain("")) }},
		{pool, "pool-list", "pool-uuid", "pool-dumpxml", e.hasName},
		{network, "net-list", "net-uuid", "net-dumpxml", e.hasName},
	} {
		names, err := e.virsh(ctx, list.names, "--all", "--name")
		if err != nil {
			return nil, err
		}
		for _, name := range strings.Fields(names) {
			if !list.named(name) {
				continue
			}
			description, err := e.virsh(ctx, list.description, name)
			if err != nil {
				return nil, err
			}
			if !e.owns(list.kind, description) {
				foreign = true
				continue
			}
			id, err := e.virsh(ctx, list.id, name)
			if err != nil {
				return nil, err
			}
			found = append(found, object{kind: list.kind, name: name, id: id})
			if list.kind != pool {
				continue
			}
			volumes, err := e.volumes(ctx, name)
			if err != nil {
				return nil, err
			}
			found = append(found, volumes...)
		}
	}
	// Where machines or disks of the same names are somebody else's, so may the
	// network be.
	return slices.DeleteFunc(found, func(o object) bool { return foreign && o.kind == network }), nil
}

func (e *Environment) hasName(name string) bool { return name == e.config.Name }

// owns says whether an object that has a name of the environment's is its own,
// by libvirt's description of it: in the box everything is.
func (e *Environment) owns(kind objectKind, description string) bool {
	if e.settings.LibvirtURI == "" {
		return true
	}
	if kind == network {
		gateway, _, _ := strings.Cut(e.settings.Network, "/")
		gateway = strings.TrimSuffix(gateway, ".0") + ".1"
		return strings.Contains(description, "bridge name='marquee0'") && strings.Contains(description, "ip address='"+gateway+"'")
	}
	return strings.Contains(description, e.storage())
}

// volumes are those of a pool, which is started if need be: one that was only
// just defined tells nothing.
func (e *Environment) volumes(ctx context.Context, inPool string) ([]object, error) {
	info, err := e.virsh(ctx, "pool-info", inPool)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(info, "running") {
		if err := os.MkdirAll(e.storage(), 0o755); err != nil {
			return nil, fmt.Errorf("make the folder of the pool: %w", err)
		}
		if _, err := e.virsh(ctx, "pool-start", inPool); err != nil {
			return nil, err
		}
	}
	if _, err := e.virsh(ctx, "pool-refresh", inPool); err != nil {
		return nil, err
	}
	list, err := e.virsh(ctx, "vol-list", inPool)
	if err != nil {
		return nil, err
	}
	var found []object
	for line := range strings.Lines(list) {
		name, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name != "" {
			found = append(found, object{kind: volume, name: name, id: strings.TrimSpace(path), pool: inPool})
		}
	}
	return found, nil
}

// remove takes an object out of libvirt. One that does not run cannot be stopped,
// which is no error: whether it is gone is what counts.
func (e *Environment) remove(ctx context.Context, o object) error {
	stop, remove := "", []string{}
	switch o.kind {
	case domain:
		stop, remove = "destroy", []string{"undefine", o.name}
	case volume:
		remove = []string{"vol-delete", "--pool", o.pool, o.name}
	case pool:
		stop, remove = "pool-destroy", []string{"pool-undefine", o.name}
	case network:
		stop, remove = "net-destroy", []string{"net-undefine", o.name}
	}
	var stopped error
	if stop != "" {
		_, stopped = e.virsh(ctx, stop, o.name)
	}
	if _, err := e.virsh(ctx, remove...); err != nil {
		return errors.Join(err, stopped)
	}
	return nil
}

// storage is the folder of the machines' disks.
func (e *Environment) storage() string { return filepath.Join(e.disks(), "storage") }
