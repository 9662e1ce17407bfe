package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// diskModules are what a virtual machine needs to mount its disk.
func diskModules() []string { return []string{"virtio_pci", "virtio_blk", "ext4"} }

// writeInitrd makes an initial file system of the program that becomes /init and
// the modules that the disk needs, which modules names with all they depend on
// (the folder of one kernel).
func writeInitrd(ctx context.Context, program, modules, to string) error {
	order, err := moduleOrder(modules, diskModules())
	if err != nil {
		return err
	}
	init, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("make the initrd: %w", err)
	}
	var a archive
	for _, dir := range []string{"dev", "sysroot", "modules"} {
		a.add(dir, 0o040755, nil)
	}
	a.add("init", 0o100755, init)
	var names []string
	for _, path := range order {
		module, err := readModule(ctx, filepath.Join(modules, path))
		if err != nil {
			return fmt.Errorf("make the initrd: %w", err)
		}
		name := moduleName(path)
		names = append(names, name)
		a.add("modules/"+name, 0o100644, module)
	}
	a.add("modules/order", 0o100644, []byte(strings.Join(names, "\n")+"\n"))
	if err := os.WriteFile(to, a.end(), 0o644); err != nil {
		return fmt.Errorf("write the initrd: %w", err)
	}
	return nil
}

// moduleOrder reads modules.dep and lists the wanted modules and what they
// depend on, dependencies first. What is built into the kernel is left out.
func moduleOrder(dir string, wanted []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read the kernel's modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read the kernel's modules: %w", err)
	}
	path, needs := map[string]string{}, map[string][]string{}
	for line := range strings.Lines(string(text)) {
		module, deps, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		path[moduleName(module)] = module
		// The nearest dependency is first, what it needs itself comes after it.
		needs[moduleName(module)] = strings.Fields(deps)
	}
	var order []string
	for _, name := range wanted {
		if path[name] == "" {
			if strings.Contains(string(builtin), "/"+name+".ko\n") {
				continue
			}
			return nil, fmt.Errorf("the kernel in %s has no module %s", dir, name)
		}
		for _, dep := range slices.Backward(needs[name]) {
			if !slices.Contains(order, dep) {
				order = append(order, dep)
			}
		}
		if !slices.Contains(order, path[name]) {
			order = append(order, path[name])
		}
	}
	return order, nil
}

// moduleName is kernel/drivers/block/virtio_blk.ko.xz's virtio_blk.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// readModule unpacks a module where the distribution packs them.
func readModule(ctx context.Context, path string) ([]byte, error) {
	unpack := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}[filepath.Ext(path)]
	if unpack == "" {
		return os.ReadFile(path)
	}
	out, err := exec.CommandContext(ctx, unpack, "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s with %s: %w", path, unpack, err)
	}
	return out, nil
}

// archive is a cpio archive in the "newc" format, which the kernel unpacks (its
// Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode uint32, data []byte) {
	a.inode++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

func (a *archive) end() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes()
}
