package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	"github.com/marquee-ads/marquee/services/account"
)

// CreateOrganisation makes an organisation.
func (s *Server) CreateOrganisation(ctx context.Context, req *accountv1.CreateOrganisationRequest) (*accountv1.CreateOrganisationResponse, error) {
	kind := account.KindAdvertiser
	if req.GetKind() == accountv1.OrganisationKind_ORGANISATION_KIND_DISPLAY_OWNER {
		kind = account.KindDisplayOwner
	}
	made, err := s.service.CreateOrganisation(ctx, caller(ctx), req.GetRequestId(), req.GetName(), kind, origin(ctx))
	if err != nil {
		return nil, err
	}
	return &accountv1.CreateOrganisationResponse{Organisation: organisationMessage(made)}, nil
}

// ListOrganisations returns a page of the caller's organisations.
func (s *Server) ListOrganisations(ctx context.Context, req *accountv1.ListOrganisationsRequest) (*accountv1.ListOrganisationsResponse, error) {
	memberships, next, err := s.service.ListMemberships(ctx, caller(ctx), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &accountv1.ListOrganisationsResponse{Memberships: service.Messages(memberships, func(m account.Membership) *accountv1.Membership {
		return &accountv1.Membership{Organisation: organisationMessage(m.Organisation), Role: m.Role.Proto()}
	}), NextPageToken: next}, nil
}

// GetOrganisation returns an organisation.
func (s *Server) GetOrganisation(ctx context.Context, req *accountv1.GetOrganisationRequest) (*accountv1.GetOrganisationResponse, error) {
	found, err := s.service.FindOrganisation(ctx, req.GetOrganisationId())
	if err != nil {
		return nil, err
	}
	return &accountv1.GetOrganisationResponse{Organisation: organisationMessage(found)}, nil
}

// ListMembers returns a page of an organisation's members.
func (s *Server) ListMembers(ctx context.Context, req *accountv1.ListMembersRequest) (*accountv1.ListMembersResponse, error) {
	members, next, err := s.service.ListMembers(ctx, req.GetOrganisationId(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &accountv1.ListMembersResponse{Members: service.Messages(members, memberMessage), NextPageToken: next}, nil
}

// SetMemberRole gives a member another role.
func (s *Server) SetMemberRole(ctx context.Context, req *accountv1.SetMemberRoleRequest) (*accountv1.SetMemberRoleResponse, error) {
	role, _ := auth.RoleOf(req.GetRole())
	member, err := s.service.SetRole(ctx, caller(ctx), req.GetOrganisationId(), req.GetAccountId(), role, origin(ctx))
	if err != nil {
		return nil, err
	}
	return &accountv1.SetMemberRoleResponse{Member: memberMessage(member)}, nil
}

// RemoveMember ends a membership.
func (s *Server) RemoveMember(ctx context.Context, req *accountv1.RemoveMemberRequest) (*accountv1.RemoveMemberResponse, error) {
	err := s.service.RemoveMember(ctx, caller(ctx), req.GetOrganisationId(), req.GetAccountId(), origin(ctx))
	return &accountv1.RemoveMemberResponse{}, err
}

// LeaveOrganisation ends the caller's own membership.
func (s *Server) LeaveOrganisation(ctx context.Context, req *accountv1.LeaveOrganisationRequest) (*accountv1.LeaveOrganisationResponse, error) {
	err := s.service.Leave(ctx, caller(ctx), req.GetOrganisationId(), origin(ctx))
	return &accountv1.LeaveOrganisationResponse{}, err
}

// CreateInvitation makes an invitation.
func (s *Server) CreateInvitation(ctx context.Context, req *accountv1.CreateInvitationRequest) (*accountv1.CreateInvitationResponse, error) {
	role, _ := auth.RoleOf(req.GetRole())
	made, token, err := s.service.CreateInvitation(ctx, caller(ctx), req.GetOrganisationId(), req.GetRequestId(), role, days(req.GetLifetimeDays()), origin(ctx))
	if err != nil {
		return nil, err
	}
	return &accountv1.CreateInvitationResponse{Invitation: invitationMessage(made), InvitationToken: token}, nil
}

// ListInvitations returns a page of an organisation's invitations.
func (s *Server) ListInvitations(ctx context.Context, req *accountv1.ListInvitationsRequest) (*accountv1.ListInvitationsResponse, error) {
	invitations, next, err := s.service.ListInvitations(ctx, req.GetOrganisationId(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &accountv1.ListInvitationsResponse{Invitations: service.Messages(invitations, invitationMessage), NextPageToken: next}, nil
}

// RevokeInvitation makes an invitation worthless.
func (s *Server) RevokeInvitation(ctx context.Context, req *accountv1.RevokeInvitationRequest) (*accountv1.RevokeInvitationResponse, error) {
	err := s.service.RevokeInvitation(ctx, caller(ctx), req.GetOrganisationId(), req.GetInvitationId(), origin(ctx))
	return &accountv1.RevokeInvitationResponse{}, err
}

// AcceptInvitation makes the caller a member.
func (s *Server) AcceptInvitation(ctx context.Context, req *accountv1.AcceptInvitationRequest) (*accountv1.AcceptInvitationResponse, error) {
	joined, err := s.service.AcceptInvitation(ctx, caller(ctx), req.GetInvitationToken(), origin(ctx))
	if err != nil {
		return nil, err
	}
	return &accountv1.AcceptInvitationResponse{Organisation: organisationMessage(joined.Organisation), Role: joined.Role.Proto()}, nil
}

// CreateAPIKey makes an API key.
func (s *Server) CreateAPIKey(ctx context.Context, req *accountv1.CreateAPIKeyRequest) (*accountv1.CreateAPIKeyResponse, error) {
	role, _ := auth.RoleOf(req.GetRole())
	made, secret, err := s.service.CreateAPIKey(ctx, caller(ctx), req.GetOrganisationId(), req.GetRequestId(), req.GetName(), role, days(req.GetLifetimeDays()), origin(ctx))
	if err != nil {
		return nil, err
	}
	return &accountv1.CreateAPIKeyResponse{ApiKey: apiKeyMessage(made), Secret: secret}, nil
}

// ListAPIKeys returns a page of an organisation's API keys.
func (s *Server) ListAPIKeys(ctx context.Context, req *accountv1.ListAPIKeysRequest) (*accountv1.ListAPIKeysResponse, error) {
	keys, next, err := s.service.ListAPIKeys(ctx, req.GetOrganisationId(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &accountv1.ListAPIKeysResponse{ApiKeys: service.Messages(keys, apiKeyMessage), NextPageToken: next}, nil
}

// RevokeAPIKey makes an API key worthless.
func (s *Server) RevokeAPIKey(ctx context.Context, req *accountv1.RevokeAPIKeyRequest) (*accountv1.RevokeAPIKeyResponse, error) {
	err := s.service.RevokeAPIKey(ctx, caller(ctx), req.GetOrganisationId(), req.GetApiKeyId(), origin(ctx))
	return &accountv1.RevokeAPIKeyResponse{}, err
}

// ExchangeAPIKey returns an access token for an API key.
func (s *Server) ExchangeAPIKey(ctx context.Context, req *accountv1.ExchangeAPIKeyRequest) (*accountv1.ExchangeAPIKeyResponse, error) {
	token, expires, err := s.service.ExchangeAPIKey(ctx, req.GetSecret())
	if err != nil {
		return nil, err
	}
	return &accountv1.ExchangeAPIKeyResponse{AccessToken: token, ExpireTime: timestamppb.New(expires)}, nil
}

// ListOrganisationAuditEvents returns a page of what happened in an organisation.
func (s *Server) ListOrganisationAuditEvents(ctx context.Context, req *accountv1.ListOrganisationAuditEventsRequest) (*accountv1.ListOrganisationAuditEventsResponse, error) {
	events, next, err := s.service.ListOrganisationEvents(ctx, req.GetOrganisationId(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &accountv1.ListOrganisationAuditEventsResponse{Events: service.Messages(events, eventMessage), NextPageToken: next}, nil
}

func days(n int32) time.Duration { return time.Duration(n) * 24 * time.Hour }

func organisationMessage(o account.Organisation) *accountv1.Organisation {
	return &accountv1.Organisation{
		OrganisationId: o.ID,
		Name:           o.Name,
		Kind:           accountv1.OrganisationKind(accountv1.OrganisationKind_value["ORGANISATION_KIND_"+string(o.Kind)]),
		CreateTime:     timestamppb.New(o.CreateTime),
	}
}

func memberMessage(m account.Member) *accountv1.Member {
	return &accountv1.Member{AccountId: m.AccountID, Name: m.Name, Role: m.Role.Proto(), CreateTime: timestamppb.New(m.CreateTime)}
}

func invitationMessage(i account.Invitation) *accountv1.Invitation {
	return &accountv1.Invitation{
		InvitationId: i.ID,
		Role:         i.Role.Proto(),
		InviterId:    i.InviterID,
		CreateTime:   timestamppb.New(i.CreateTime),
		ExpireTime:   timestamppb.New(i.ExpireTime),
		AcceptTime:   timestamp(i.AcceptTime),
		AccepterId:   i.AccepterID,
		RevokeTime:   timestamp(i.RevokeTime),
	}
}

func apiKeyMessage(k account.APIKey) *accountv1.APIKey {
	return &accountv1.APIKey{
		ApiKeyId:   k.ID,
		Name:       k.Name,
		Role:       k.Role.Proto(),
		CreatorId:  k.CreatorID,
		CreateTime: timestamppb.New(k.CreateTime),
		ExpireTime: timestamppb.New(k.ExpireTime),
		UseTime:    timestamp(k.UseTime),
		RevokeTime: timestamp(k.RevokeTime),
	}
}
