// Package provisioning gives devices their identity: enrollment tokens, each tenant's certificate
// authority, EST (RFC 7030 with the clarifications of RFC 8951), renewal, revocation and what to do
// with devices that nobody bought.
//
// The life of a device certificate (the owner's operational one, LDevID in IEEE 802.1AR's words):
//
//	token ──simpleenroll──► issued ──first use──► in use ──simplereenroll──► issued (the next)
//	                          │                     │                            │ first use
//	                          │                     └── superseded ◄─────────────┘
//	                          └──────── revoked ◄───┘
//
// Nothing that is delivered once can be lost: the same token with the same key gets the same
// certificate again for as long as the token lives, and an old certificate works until the new one
// has been used.
//
// Private keys of devices never come here. Authorities' keys are in a KeyStore; the database holds
// certificates and hashes only, so its copy gives nobody an identity.
package provisioning
