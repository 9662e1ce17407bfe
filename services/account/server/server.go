// Package server is the account service's gRPC API: it translates between
// protobuf and the domain.
package server

import (
	"context"
	"encoding/base64"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	"github.com/marquee-ads/marquee/services/account"
)

// Server implements AccountService and OrganisationService. Validation,
// authentication and the translation of errors are done by the interceptors before
// and after it.
type Server struct {
	accountv1.UnimplementedAccountServiceServer
	accountv1.UnimplementedOrganisationServiceServer
	service *account.Service
}

// New serves a service.
func New(service *account.Service) *Server { return &Server{service: service} }

// SignUp creates an account.
func (s *Server) SignUp(ctx context.Context, req *accountv1.SignUpRequest) (*accountv1.SignUpResponse, error) {
	created, err := s.service.SignUp(ctx, req.GetRequestId(), req.GetName(), req.GetPassword(), origin(ctx))
	if err != nil {
		return nil, err
	}
	return &accountv1.SignUpResponse{Account: accountMessage(created)}, nil
}

// caller is on whose behalf a call is made. Methods for accounts are not reached
// without one (package service); to the others it is nobody, who has no id and
// owns nothing.
func caller(ctx context.Context) auth.Caller {
	c, _ := auth.CallerFromContext(ctx)
	return c
}

// origin is where a call came from.
func origin(ctx context.Context) account.Origin {
	return account.Origin{Address: service.ClientAddress(ctx)}
}

// GetAccount returns the caller's account.
func (s *Server) GetAccount(ctx context.Context, req *accountv1.GetAccountRequest) (*accountv1.GetAccountResponse, error) {
	found, err := s.service.GetAccount(ctx, caller(ctx), req.GetAccountId())
	if err != nil {
		return nil, err
	}
	return &accountv1.GetAccountResponse{Account: accountMessage(found)}, nil
}

// GetSigningKeys returns what verifies access tokens.
func (s *Server) GetSigningKeys(ctx context.Context, req *accountv1.GetSigningKeysRequest) (*accountv1.GetSigningKeysResponse, error) {
	published, next, err := s.service.Published(ctx, service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &accountv1.GetSigningKeysResponse{
		Keys: service.Messages(published.Keys, func(k account.Key) *accountv1.SigningKey {
			return &accountv1.SigningKey{
				KeyId:        k.ID,
				PublicKey:    k.Public,
				SignFromTime: timestamppb.New(k.SignFrom),
				ExpireTime:   timestamppb.New(k.ExpireTime),
			}
		}),
		EndedSessions: service.Messages(published.Ended, func(e account.EndedSession) *accountv1.EndedSession {
			return &accountv1.EndedSession{SessionId: e.ID, ExpireTime: timestamppb.New(e.ExpireTime)}
		}),
		ChangedAccounts: service.Messages(published.Changed, func(c account.ChangedAccount) *accountv1.ChangedAccount {
			return &accountv1.ChangedAccount{AccountId: c.ID, RolesVersion: c.Version, ExpireTime: timestamppb.New(c.ExpireTime)}
		}),
		NextPageToken: next,
	}, nil
}

// GetJSONWebKeySet returns the keys as a JSON Web Key Set.
func (s *Server) GetJSONWebKeySet(ctx context.Context, _ *accountv1.GetJSONWebKeySetRequest) (*accountv1.GetJSONWebKeySetResponse, error) {
	keys, err := s.service.PublishedKeys(ctx)
	if err != nil {
		return nil, err
	}
	return &accountv1.GetJSONWebKeySetResponse{Keys: service.Messages(keys, func(k account.Key) *accountv1.JSONWebKey {
		return &accountv1.JSONWebKey{Kty: "OKP", Crv: "Ed25519", Alg: "EdDSA", Use: "sig", Kid: k.ID, X: base64.RawURLEncoding.EncodeToString(k.Public)}
	})}, nil
}

func accountMessage(a account.Account) *accountv1.Account {
	return &accountv1.Account{AccountId: a.ID, Name: a.Name, CreateTime: timestamppb.New(a.CreateTime)}
}
