//go:build !linux

package box

import "errors"

// Init needs the namespaces of Linux.
func Init(string) error {
	return errors.New("virtual machines in a box need Linux: give the address of a libvirt with --libvirt-uri")
}
