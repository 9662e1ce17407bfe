package device

import (
	"context"
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
)

const (
	// MaxGroups bounds how many groups an organisation has.
	MaxGroups = 500
	// MaxGroupDevices bounds how many devices are in a group.
	MaxGroupDevices = 5000

	groupPrefix = "grp_"
)

// Group is a named set of an organisation's devices. A device may be in several.
type Group struct {
	ID             string // "grp_" and a ULID
	OrganisationID string
	Name           string
	// Devices is how many there are in it.
	Devices    int
	CreateTime time.Time
	// UpdateTime is when the name was last changed.
	UpdateTime time.Time
}

// What callers that deal with groups are told.
var (
	ErrGroup         = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the group is not possible")
	ErrGroupNotFound = fault.New(fault.NotFound, "GROUP_NOT_FOUND", "the organisation has no such group")
	ErrTooManyGroups = fault.New(fault.FailedPrecondition, "TOO_MANY_GROUPS", "the organisation has %d groups: delete one first", MaxGroups)
	ErrGroupFull     = fault.New(fault.FailedPrecondition, "GROUP_FULL", "the group would have more than %d devices: make another", MaxGroupDevices)
	ErrGroupEmpty    = fault.New(fault.FailedPrecondition, "GROUP_EMPTY", "the group has no devices: add some first")
)

// GroupStore keeps groups; it is a part of Store. What names a group that the
// organisation does not have fails with ErrGroupNotFound.
type GroupStore interface {
	// CreateGroup stores a group, unless the request came before: then it returns the
	// one that was made. Errors: ErrRequestIDReused, ErrTooManyGroups.
	CreateGroup(ctx context.Context, r Request, g Group) (Group, error)
	FindGroup(ctx context.Context, organisationID, id string) (Group, error)
	// ListGroups returns up to limit groups whose id is less than before ("" is no
	// bound), the greatest first.
	ListGroups(ctx context.Context, organisationID, before string, limit int) ([]Group, error)
	// RenameGroup changes nothing when that is its name.
	RenameGroup(ctx context.Context, organisationID, id, name string, now time.Time) (Group, error)
	// DeleteGroup is no error when there is no such group.
	DeleteGroup(ctx context.Context, organisationID, id string) error
	// AddGroupDevices adds all of the devices or none; those that are in it stay.
	// Errors: ErrNotFound with the device, ErrGroupFull.
	AddGroupDevices(ctx context.Context, organisationID, id string, deviceIDs []string) (Group, error)
	// RemoveGroupDevices leaves out those that are not in it.
	RemoveGroupDevices(ctx context.Context, organisationID, id string, deviceIDs []string) (Group, error)
}

func groupName(text string) (string, error) {
	name, ok := cleanName(text)
	if !ok {
		return "", ErrGroup.WithField("name", "name.characters", "is empty, longer than 100 characters, or holds control or invisible characters")
	}
	return name, nil
}

// CreateGroup makes a group without devices. Errors: ErrGroup, ErrRequestIDReused,
// ErrTooManyGroups.
func (s *Service) CreateGroup(ctx context.Context, callerID, requestID, organisationID, name string) (Group, error) {
	name, err := groupName(name)
	if err != nil {
		return Group{}, err
	}
	now := s.moment()
	r, err := newRequest(callerID, requestID, struct{ Method, OrganisationID, Name string }{"CreateGroup", organisationID, name}, now)
	if err != nil {
		return Group{}, err
	}
	id, err := s.newID(groupPrefix, now)
	if err != nil {
		return Group{}, err
	}
	made, err := s.store.CreateGroup(ctx, r, Group{ID: id, OrganisationID: organisationID, Name: name, CreateTime: now, UpdateTime: now})
	if err != nil {
		return Group{}, fmt.Errorf("making a group: %w", err)
	}
	return made, nil
}

// FindGroup returns a group. Errors: ErrGroupNotFound.
func (s *Service) FindGroup(ctx context.Context, organisationID, id string) (Group, error) {
	return s.store.FindGroup(ctx, organisationID, id)
}

// ListGroups returns a page of an organisation's groups, the newest first. Errors:
// paging.ErrTokenInvalid.
func (s *Service) ListGroups(ctx context.Context, organisationID string, page paging.Page) ([]Group, string, error) {
	of := "groups of " + organisationID
	return paging.List(ctx, of, page, func(ctx context.Context, before string, limit int) ([]Group, error) {
		return s.store.ListGroups(ctx, organisationID, before, limit)
	}, func(g Group) string { return g.ID })
}

// RenameGroup gives a group a name; a repeat changes nothing. Errors: ErrGroup,
// ErrGroupNotFound.
func (s *Service) RenameGroup(ctx context.Context, organisationID, id, name string) (Group, error) {
	name, err := groupName(name)
	if err != nil {
		return Group{}, err
	}
	return s.store.RenameGroup(ctx, organisationID, id, name, s.moment())
}

// DeleteGroup takes a group away, and none of its devices. It is no error when there
// is no such group.
func (s *Service) DeleteGroup(ctx context.Context, organisationID, id string) error {
	return s.store.DeleteGroup(ctx, organisationID, id)
}

// AddGroupDevices adds devices to a group, all of them or none; those that are in it
// stay. Errors: ErrGroupNotFound, ErrNotFound with the device, ErrGroupFull.
func (s *Service) AddGroupDevices(ctx context.Context, organisationID, id string, deviceIDs []string) (Group, error) {
	return s.store.AddGroupDevices(ctx, organisationID, id, deviceIDs)
}

// RemoveGroupDevices takes devices out of a group; those that are not in it do not
// matter. Errors: ErrGroupNotFound.
func (s *Service) RemoveGroupDevices(ctx context.Context, organisationID, id string, deviceIDs []string) (Group, error) {
	return s.store.RemoveGroupDevices(ctx, organisationID, id, deviceIDs)
}
