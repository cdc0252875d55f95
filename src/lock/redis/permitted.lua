-- Before each of the scripts: Redis 7 has no error code for what a script is not permitted.
if redis.acl_check_cmd then
    local commands = 'type get set del exists pttl pexpire time lpush zadd zrem zrank zcard zrange zrangebyscore'
    for command in string.gmatch(commands, '%a+') do
        for _, key in ipairs(KEYS) do
            if not redis.acl_check_cmd(command, key) then
                return redis.error_reply('NOPERM ' .. command .. ' ' .. key)
            end
        end
    end
end

