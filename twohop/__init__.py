"""The two-hop study: how a vision-language model recalls facts about what it sees."""
