-- Ack the intake entries of jobs that submit accepted. ARGV group, then entry and job id of each.
-- Returns the entries whose job is unknown, which stay unacked.
local known, unknown = {}, {}
for i = 2, #ARGV, 2 do
  -- pcall, since "<id>:request" names a key of another kind.
  local state = redis.pcall('HGET', key('job', ARGV[i + 1]), 'state')
  local list = type(state) == 'string' and known or unknown
  list[#list + 1] = ARGV[i]
end
if #known > 0 then redis.call('XACK', K.requests, ARGV[1], unpack(known)) end
return unknown
