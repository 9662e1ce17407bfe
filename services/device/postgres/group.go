package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// CreateGroup implements device.Store.
func (s *Store) CreateGroup(ctx context.Context, r device.Request, g device.Group) (device.Group, error) {
	made := g
	err := s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		before, err := once(ctx, q, r, g.ID)
		if err != nil {
			return err
		}
		if before != "" {
			made, err = group(ctx, q, g.OrganisationID, before)
			return err
		}
		if err := q.LockOrganisation(ctx, g.OrganisationID); err != nil {
			return err
		}
		n, err := q.CountGroups(ctx, g.OrganisationID)
		if err != nil {
			return err
		}
		if n >= device.MaxGroups {
			return device.ErrTooManyGroups
		}
		return q.InsertGroup(ctx, query.InsertGroupParams{
			GroupID: g.ID, OrganisationID: g.OrganisationID, Name: g.Name, CreateTime: g.CreateTime, UpdateTime: g.UpdateTime,
		})
	})
	return made, err
}

func group(ctx context.Context, q *query.Queries, organisationID, id string) (device.Group, error) {
	row, err := q.Group(ctx, query.GroupParams{GroupID: id, OrganisationID: organisationID})
	if none(err) {
		return device.Group{}, device.ErrGroupNotFound.Because(err)
	}
	if err != nil {
		return device.Group{}, err
	}
	return groupOf(row), nil
}

func groupOf(r query.GroupRow) device.Group {
	return device.Group{
		ID: r.GroupID, OrganisationID: r.OrganisationID, Name: r.Name, Devices: int(r.Devices),
		CreateTime: r.CreateTime.UTC(), UpdateTime: r.UpdateTime.UTC(),
	}
}

// FindGroup implements device.Store.
func (s *Store) FindGroup(ctx context.Context, organisationID, id string) (g device.Group, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		g, err = group(ctx, s.q, organisationID, id)
		return err
	})
	return g, err
}

// ListGroups implements device.Store.
func (s *Store) ListGroups(ctx context.Context, organisationID, before string, limit int) (found []device.Group, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		rows, err := s.q.Groups(ctx, query.GroupsParams{OrganisationID: organisationID, Before: before, AtMost: int32(limit)})
		found = make([]device.Group, len(rows))
		for i, r := range rows {
			found[i] = groupOf(query.GroupRow(r))
		}
		return err
	})
	return found, err
}

// changeGroup runs do in a transaction while nobody else can change the group, and
// returns what it is like then.
func (s *Store) changeGroup(ctx context.Context, organisationID, id string, do func(context.Context, *query.Queries) error) (g device.Group, err error) {
	err = s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		if _, err := q.LockGroup(ctx, query.LockGroupParams{GroupID: id, OrganisationID: organisationID}); none(err) {
			return device.ErrGroupNotFound.Because(err)
		} else if err != nil {
			return err
		}
		if err := do(ctx, q); err != nil {
			return err
		}
		g, err = group(ctx, q, organisationID, id)
		return err
	})
	return g, err
}

// RenameGroup implements device.Store.
func (s *Store) RenameGroup(ctx context.Context, organisationID, id, name string, now time.Time) (device.Group, error) {
	return s.changeGroup(ctx, organisationID, id, func(ctx context.Context, q *query.Queries) error {
		return q.RenameGroup(ctx, query.RenameGroupParams{GroupID: id, OrganisationID: organisationID, Name: name, UpdateTime: now})
	})
}

// DeleteGroup implements device.Store.
func (s *Store) DeleteGroup(ctx context.Context, organisationID, id string) error {
	return s.db.Call(ctx, func(ctx context.Context) error {
		return s.q.DeleteGroup(ctx, query.DeleteGroupParams{GroupID: id, OrganisationID: organisationID})
	})
}

// AddGroupDevices implements device.Store.
func (s *Store) AddGroupDevices(ctx context.Context, organisationID, id string, deviceIDs []string) (device.Group, error) {
	return s.changeGroup(ctx, organisationID, id, func(ctx context.Context, q *query.Queries) error {
		// In order, so that two that do this never wait for each other.
		found, err := q.ShareDevices(ctx, query.ShareDevicesParams{DeviceIds: deviceIDs, OrganisationID: organisationID})
		if err != nil {
			return err
		}
		for i, wanted := range deviceIDs {
			if !slices.Contains(found, wanted) {
				return device.ErrNotFound.WithField(fmt.Sprintf("device_ids[%d]", i), "device.known", "is no device of the organisation")
			}
		}
		if err := q.AddGroupDevices(ctx, query.AddGroupDevicesParams{GroupID: id, DeviceIds: deviceIDs}); err != nil {
			return err
		}
		after, err := group(ctx, q, organisationID, id)
		if err == nil && after.Devices > device.MaxGroupDevices {
			return device.ErrGroupFull
		}
		return err
	})
}

// RemoveGroupDevices implements device.Store.
func (s *Store) RemoveGroupDevices(ctx context.Context, organisationID, id string, deviceIDs []string) (device.Group, error) {
	return s.changeGroup(ctx, organisationID, id, func(ctx context.Context, q *query.Queries) error {
		return q.RemoveGroupDevices(ctx, query.RemoveGroupDevicesParams{GroupID: id, DeviceIds: deviceIDs})
	})
}
