// Package registry keeps the records of all devices: which exist, in which stage each one is and why,
// what they are called and how they are labeled. It is the only writer of a device's stage: other rooms
// ask it to create and to move devices inside their own transactions, and guards of other rooms may
// refuse a move by saying what is missing.
//
// Service holds the records and the rules. Desk is what people and programs see of them: lists,
// bulk actions, the API and the console's pages, joined with what other rooms know about a device.
package registry
