// Package demo shows Steward at work on real input: Life takes this machine through a whole life on a
// throw-away data directory, Fleet runs a server with simulated devices and this machine as a real one.
// Both do everything through the public API and the real agent, so that they prove what they show.
package demo
