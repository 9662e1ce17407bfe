package account

import (
	"context"
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/paging"
)

// InvitationLifetime is how long an invitation can be accepted unless it says
// otherwise.
const InvitationLifetime = 7 * 24 * time.Hour

// Invitation is an offer of a role in an organisation, for one account.
type Invitation struct {
	// ID is "inv_" and a ULID.
	ID             string
	OrganisationID string
	Role           auth.Role
	// InviterID is the account that made it.
	InviterID  string
	CreateTime time.Time
	ExpireTime time.Time
	// AcceptTime is when it was accepted, by AccepterID, or zero.
	AcceptTime time.Time
	AccepterID string
	// RevokeTime is when it was revoked, or zero.
	RevokeTime time.Time
}

// CreateInvitation makes an invitation and the token by which it is accepted;
// lifetime 0 is InvitationLifetime. Errors: ErrRequestIDReused,
// ErrTooManyInvitations, auth.ErrNotAMember, auth.ErrRoleNotAllowed.
func (s *Service) CreateInvitation(ctx context.Context, caller auth.Caller, organisationID, requestID string, role auth.Role, lifetime time.Duration, from Origin) (Invitation, string, error) {
	if lifetime == 0 {
		lifetime = InvitationLifetime
	}
	event, err := s.memberEvent(InvitationCreated, caller, organisationID, "", from)
	if err != nil {
		return Invitation{}, "", err
	}
	id, err := newID("inv", event.Time, s.random)
	if err != nil {
		return Invitation{}, "", err
	}
	event.SubjectID, event.Role = id, role
	made := Invitation{
		ID: id, OrganisationID: organisationID, Role: role, InviterID: caller.AccountID,
		CreateTime: event.Time, ExpireTime: event.Time.Add(lifetime),
	}
	err = s.asOwner(ctx, caller, organisationID, func(ctx context.Context, tx Tx) error {
		before, first, err := s.claim(ctx, tx, caller, requestID, id, event.Time, "CreateInvitation", organisationID, string(role), lifetime.String())
		if err != nil {
			return err
		}
		if !first {
			return earlier(ctx, tx.Invitation, before, &made)
		}
		open, err := tx.CountInvitations(ctx, organisationID, event.Time)
		switch {
		case err != nil:
			return err
		case open >= MaxInvitations:
			return ErrTooManyInvitations
		}
		if err := tx.PutInvitation(ctx, made); err != nil {
			return err
		}
		return tx.Record(ctx, *event)
	})
	if err != nil {
		return Invitation{}, "", fmt.Errorf("making an invitation: %w", err)
	}
	token, err := s.secret.sealCredential(invitationToken, made.ID)
	return made, token, err
}

// ListInvitations returns a page of an organisation's invitations, the newest
// first.
func (s *Service) ListInvitations(ctx context.Context, organisationID string, page paging.Page) ([]Invitation, string, error) {
	return list(ctx, s, "invitations of "+organisationID, page, func(ctx context.Context, before string, limit int) ([]Invitation, error) {
		return s.store.ListInvitations(ctx, organisationID, before, limit)
	}, func(i Invitation) string { return i.ID })
}

// RevokeInvitation makes an invitation worthless. Errors: ErrNoSuchInvitation,
// ErrInvitationUsed, auth.ErrNotAMember, auth.ErrRoleNotAllowed.
func (s *Service) RevokeInvitation(ctx context.Context, caller auth.Caller, organisationID, invitationID string, from Origin) error {
	event, err := s.memberEvent(InvitationRevoked, caller, organisationID, "", from)
	if err != nil {
		return err
	}
	err = s.asOwner(ctx, caller, organisationID, func(ctx context.Context, tx Tx) error {
		invitation, err := tx.Invitation(ctx, invitationID)
		switch {
		case err != nil:
			return err
		case invitation == nil || invitation.OrganisationID != organisationID:
			return ErrNoSuchInvitation
		case !invitation.AcceptTime.IsZero():
			return ErrInvitationUsed
		case !invitation.RevokeTime.IsZero():
			return nil
		}
		invitation.RevokeTime = event.Time
		event.SubjectID, event.Role = invitationID, invitation.Role
		if err := tx.PutInvitation(ctx, *invitation); err != nil {
			return err
		}
		return tx.Record(ctx, *event)
	})
	if err != nil {
		return fmt.Errorf("revoking an invitation: %w", err)
	}
	return nil
}

// AcceptInvitation makes the caller a member; a repeat gets the first answer.
// Errors: ErrNoSuchInvitation, ErrInvitationUsed, ErrInvitationExpired,
// ErrInvitationRevoked, ErrAlreadyAMember, ErrTooManyOrganisations.
func (s *Service) AcceptInvitation(ctx context.Context, caller auth.Caller, token string, from Origin) (Membership, error) {
	id, ok := s.secret.openCredential(invitationToken, token)
	if !ok {
		return Membership{}, ErrNoSuchInvitation
	}
	event, err := s.memberEvent(MemberJoined, caller, "", caller.AccountID, from)
	if err != nil {
		return Membership{}, err
	}
	var joined Membership
	err = s.store.Change(ctx, func(ctx context.Context, tx Tx) error {
		organisation, invitation, err := s.invitationAndOrganisation(ctx, tx, id)
		if err != nil {
			return err
		}
		member, err := tx.Member(ctx, organisation.ID, caller.AccountID)
		if err != nil {
			return err
		}
		joined = Membership{*organisation, invitation.Role}
		if member != nil && invitation.AccepterID == caller.AccountID {
			joined.Role = member.Role
			return nil // a repeat
		}
		if err := invitation.acceptable(event.Time); err != nil {
			return err
		}
		if member != nil {
			return ErrAlreadyAMember
		}
		if err := s.room(ctx, tx, caller.AccountID); err != nil {
			return err
		}
		invitation.AcceptTime, invitation.AccepterID = event.Time, caller.AccountID
		if err := tx.PutInvitation(ctx, *invitation); err != nil {
			return err
		}
		if err := tx.PutMember(ctx, Member{OrganisationID: organisation.ID, AccountID: caller.AccountID, Role: invitation.Role, CreateTime: event.Time}, event.Time); err != nil {
			return err
		}
		event.OrganisationID, event.SubjectID, event.Role = organisation.ID, invitation.ID, invitation.Role
		return tx.Record(ctx, *event)
	})
	if err != nil {
		return Membership{}, fmt.Errorf("accepting an invitation: %w", err)
	}
	return joined, nil
}

// invitationAndOrganisation reads an invitation once nobody else can change it:
// its organisation comes first, as everywhere, so that two never wait for each
// other.
func (s *Service) invitationAndOrganisation(ctx context.Context, tx Tx, id string) (*Organisation, *Invitation, error) {
	invitation, err := tx.Invitation(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if invitation == nil {
		return nil, nil, ErrNoSuchInvitation
	}
	organisation, err := tx.Organisation(ctx, invitation.OrganisationID)
	if err != nil {
		return nil, nil, err
	}
	if invitation, err = tx.Invitation(ctx, id); err != nil {
		return nil, nil, err
	}
	if organisation == nil || invitation == nil {
		return nil, nil, ErrNoSuchInvitation
	}
	return organisation, invitation, nil
}

// acceptable says why an invitation cannot be accepted at now.
func (i Invitation) acceptable(now time.Time) error {
	switch {
	case !i.AcceptTime.IsZero():
		return ErrInvitationUsed
	case !i.RevokeTime.IsZero():
		return ErrInvitationRevoked
	case !now.Before(i.ExpireTime):
		return ErrInvitationExpired
	}
	return nil
}
